#!/usr/bin/env python3
"""Our trainer beside TRL on the CPU: tokens a second (of samples, padding not counted) and peak memory.

    tests/bench/trl_bench.py PART… [--runs 3]    runs parts, keeps the figures in build/bench, prints the table
    tests/bench/trl_bench.py                     prints the table of what is kept

Parts: llama-sft, llama-reward_model, llama-dpo (a Llama of 134M random weights, samples of 24 to 640 tokens, about 190 on
average), m-sft, m-reward_model, m-dpo and m-ppo (the tiny world's M on its own short dialogues); llama-sft-bf16: the first in
bfloat16 beside TRL's mixed precision; -hh after a part of pairs: prompts of 50 to 500 tokens and answers of 20 to 200, as those of
human preferences are. Each takes minutes; run them one after the other, with nothing else.

Tokens are those of samples, each with its prompt: we compute a prompt once for both answers, and TRL for each.

Both sides have the same samples, batch sizes, hyperparameters and threads, every run a process of its own, in turns; a run's rate
is over its steps without the first, a figure the median of the runs. TRL runs as it comes (`padded`), with its batches
grouped by length (`grouped`) and without padding where its trainer can (`padding_free`); the best of them counts.
PPO: 64 rollouts of at most 60 tokens an iteration, two passes of updates in minibatches of 32; rollouts a second.
Needs what ./deploy/setup --full installs, and build/release; PYTHONPATH is to name its folder of TRL, and the Python its own:

    PYTHONPATH=~/.cache/almost/trl-0.24.0 ~/.cache/almost/python/bin/python tests/bench/trl_bench.py llama-sft
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPS = pathlib.Path(os.environ.get("ALMOST_DEPS", pathlib.Path.home() / ".cache/almost"))
OUT = pathlib.Path(os.environ.get("ALMOST_BENCH_OUT", ROOT / "build/bench")) / "trl"
WORLD = ROOT / "common/world/models/M"
THREADS = int(os.environ.get("ALMOST_BENCH_THREADS", len(os.sched_getaffinity(0))))
HYPER = {"learning_rate": 1e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0}
UNUSED = "ÿ"  # a byte that no text has: what TRL pads with
PPO = {"rollouts": 64, "epochs": 2, "minibatch_size": 32, "max_new_tokens": 60, "kl_coefficient": 0.05}
# Samples of a step and steps of a run.
SIZES = {"llama": {"sft": (8, 3), "reward_model": (4, 3), "dpo": (4, 3)},
         "m": {"sft": (16, 40), "reward_model": (16, 30), "dpo": (16, 30), "ppo": (64, 4)}}


def sentence(draw):
    a, b = draw.randint(1, 6), draw.randint(1, 6)
    return draw.choice([f"{a} plus {b} is {a + b}.", "You count up from there.", "Good question!", "I hope this helps.",
                        "The opposite of hot is cold.", "By the way, a thing is not both big and small."])


def answer(draw, model):
    """Of the tiny world's lengths, or long ones that differ much: a sentence has about 9 tokens."""
    sentences = draw.randint(1, 4) if model == "m" else min(70, max(1, round(draw.lognormvariate(2.7, 0.8))))
    return " ".join(sentence(draw) for _ in range(sentences))


def write_data(path, model, kind, count, hh=False):
    draw = random.Random(3)
    with open(path, "w") as file:
        for _ in range(count):
            question = f"What is {draw.randint(1, 6)} plus {draw.randint(1, 6)}?"
            chosen, rejected = answer(draw, model), answer(draw, model)
            if hh:
                question, chosen, rejected = (" ".join(sentence(draw) for _ in range(draw.randint(*sentences)))
                                              for sentences in ((5, 55), (2, 22), (2, 22)))
            line = {"prompt": question, "chosen": chosen, "rejected": rejected}
            if kind == "sft":
                line = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": chosen}]}
            file.write(json.dumps(line) + "\n")


def write_model(folder, model, kind, hh=False):
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    source = WORLD
    if model == "llama":
        config = LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                             num_attention_heads=12, max_position_embeddings=2048, tie_word_embeddings=False, num_labels=1,
                             bos_token_id=0, eos_token_id=0)
        kind_of_model = LlamaForSequenceClassification if kind == "reward_model" else LlamaForCausalLM
        kind_of_model(config).save_pretrained(folder)
    elif kind == "reward_model":
        AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32).save_pretrained(folder)
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if not (folder / file.name).exists() and file.name != "model.safetensors" or kind != "reward_model" and model == "m":
            (folder / file.name).write_bytes(file.read_bytes())
    if hh and model == "m":  # whose samples are longer than its context
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))


def lines(command, folder, **environment):
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment})
    if done.returncode != 0:
        raise SystemExit(done.stderr[-4000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours(folder, kind, bf16, steps):
    batch = SIZES["llama" if folder.name == "llama" else "m"][kind][0]
    body = {"dataset": "data.jsonl", "epochs": 1, "batch_size": batch} | ({"beta": 0.1} if kind == "dpo" else {})
    if kind == "ppo":
        body = {"dataset": "data.jsonl", "num_iterations": steps, **PPO, "value_learning_rate": 1e-3, "reward_target": "unused",
                "reward_model": "models/unused"}
    spec = {"base_model": "model", "seed": 11, "num_threads": THREADS, "prompt_format": "world", kind: body,
            "optimizer": {**HYPER, "schedule": "SCHEDULE_COSINE"}, "checkpoint_steps": 10**6}
    if bf16:
        spec["memory"] = {"precision": "PRECISION_BFLOAT16"}
    (folder / "spec.json").write_text(json.dumps(spec))
    with tempfile.TemporaryDirectory() as work:
        command = [ROOT / "build/release/bin/run_job", "spec.json", work] + (["reward"] if kind == "ppo" else [])
        return lines(command, folder)


def theirs(folder, kind, bf16, steps, way):
    job = {"kind": kind, "model": "model", "dataset": "data.jsonl", "num_threads": THREADS, "schedule": "cosine", "pad": UNUSED,
           "bf16": bf16, "padding_free": way == "padding_free", "beta": 0.1, **HYPER}
    if kind == "ppo":
        job |= {"reward_model": "reward", "iterations": steps, **PPO}
    else:
        batch = SIZES["llama" if folder.name == "llama" else "m"][kind][0]
        order = lines([ROOT / "build/release/bin/run_job", "order", 11, batch * steps, 1, batch], folder)
        if way == "grouped":
            data = (folder / "data.jsonl").read_text().splitlines()
            flat = sorted((i for step in order for i in step), key=lambda i: len(data[i]))
            order = [flat[at:at + batch] for at in range(0, len(flat), batch)]
            random.Random(1).shuffle(order)
        job["order"] = order
    (folder / "job.json").write_text(json.dumps(job))
    return lines([sys.executable, ROOT / "tests/parity/trl_side.py", "job.json"], folder)


def figures(run, kind):
    """Rate and peak memory; the first step, which warms up, is left out."""
    steps = [step for step in run if "seconds" in step or "step_seconds" in step]
    seconds = [step.get("seconds", step.get("step_seconds")) for step in steps]
    work = [PPO["rollouts"] if kind == "ppo" else step["tokens"] for step in steps]
    # Over all steps, since batches grouped by length differ.
    return {"rate": sum(work[1:]) / sum(seconds[1:]), "memory": max(step.get("peak_memory_bytes", 0) for step in run)}


def run(part, runs):
    model, kind, *rest = part.split("-")
    bf16, hh = "bf16" in rest, "hh" in rest
    batch, steps = SIZES[model][kind]
    ways = ["padded"] if kind == "ppo" else ["padded", "grouped"] + (["padding_free"] if kind != "reward_model" else [])
    kept = {}
    with tempfile.TemporaryDirectory(prefix="almost-trl-bench-") as name:
        folder = pathlib.Path(name) / model
        folder.mkdir()
        write_data(folder / "data.jsonl", model, kind, batch * steps, hh)
        write_model(folder / "model", model, kind, hh)
        if kind == "ppo":
            write_model(folder / "reward", model, "reward_model")
        for _ in range(runs):
            kept.setdefault("ours", []).append(figures(ours(folder, kind, bf16, steps), kind))
            for way in ways:
                kept.setdefault(way, []).append(figures(theirs(folder, kind, bf16, steps, way), kind))
                print(part, way, kept["ours"][-1], kept[way][-1], file=sys.stderr, flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{part}.json").write_text(json.dumps(kept, indent=1))


def table():
    print("| | ours | TRL: padded | grouped | padding-free | ours / best | peak GB: ours | TRL | ours / TRL |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for path in sorted(OUT.glob("*.json")):
        kept = json.loads(path.read_text())
        rate = {way: statistics.median(run["rate"] for run in runs) for way, runs in kept.items()}
        memory = {way: statistics.median(run["memory"] for run in runs) for way, runs in kept.items()}
        best = max((way for way in rate if way != "ours"), key=rate.get)
        cells = [f"{rate[way]:,.0f}" if way in rate else "" for way in ("ours", "padded", "grouped", "padding_free")]
        cells += [f"{rate['ours'] / rate[best]:.2f}", f"{1e-9 * memory['ours']:.2f}", f"{1e-9 * memory[best]:.2f}",
                  f"{memory['ours'] / memory[best]:.2f}"]
        print(f"| {path.stem} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    for part in arguments.parts:
        run(part, arguments.runs)
    table()


if __name__ == "__main__":
    main()
