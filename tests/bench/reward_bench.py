#!/usr/bin/env python3
"""Reward scoring on CPU: this suite's engine beside transformers, in one run.

    reward_bench.py [--pairs 12] [--repeats 5] [--threads 2] [--binary build/release/bin/reward_bench]

A Llama of 134M parameters' shape (768 wide, 12 layers, vocabulary 32,000) with random float32 weights and a reward
head scores pairs of answers to one prompt, 50 to 1,000 tokens with it. Engine: as the reward service calls it,
everything in one call, packed without padding, a prompt computed once for its two answers. transformers: padded on the
right under a mask, with the best of several batch sizes, in the order given and sorted by length. The two
take turns; medians. The machine's own rate is torch's (MKL's) float32 matrix product in the same run.

Needs deploy/setup --full and build/release; use the Python of ~/.cache/almost/python.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForSequenceClassification, LlamaConfig

SHAPE = dict(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
             max_position_embeddings=2048, num_labels=1, pad_token_id=0)
BATCHES = (1, 2, 4, 8, 16)
BLOCK = 16  # tokens of a cache block


def make_pairs(count, generator):
    """[(chosen, rejected)]: lengths uniform in [50, 1000], a third to two thirds of the shorter one is the prompt."""
    pairs = []
    for _ in range(count):
        lengths = [generator.randint(50, 1000) for _ in range(2)]
        prompt_length = int(min(lengths) * generator.uniform(1 / 3, 2 / 3))
        ids = lambda n: [generator.randint(1, SHAPE["vocab_size"] - 1) for _ in range(n)]
        prompt = ids(prompt_length)
        pairs.append(tuple(prompt + ids(n - prompt_length) for n in lengths))
    return pairs


def flops(lengths):
    """Multiplications and additions of the layers' matrices and of causal attention."""
    d, f, layers = (SHAPE[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    return sum(layers * (2 * (4 * d * d + 3 * d * f) * n + 2 * d * n * (n + 1)) for n in lengths)


def peak():
    """float32 matrix product of 2,048 rows and columns, operations a second."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


@torch.no_grad()
def score_padded(model, sequences, batch, by_length):
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i])) if by_length else list(range(len(sequences)))
    scores = [0.0] * len(sequences)
    start = time.perf_counter()
    for begin in range(0, len(order), batch):
        some = order[begin:begin + batch]
        longest = max(len(sequences[i]) for i in some)
        ids = torch.tensor([sequences[i] + [0] * (longest - len(sequences[i])) for i in some])
        out = model(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False).logits[:, 0]
        for i, score in zip(some, out.tolist()):
            scores[i] = score
    return time.perf_counter() - start, scores


class Engine:
    def __init__(self, binary, folder, threads):
        self.process = subprocess.Popen([binary, folder, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def score(self, sequences):
        self.process.stdin.write(json.dumps({"sequences": sequences}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "build",
                                                         "release", "bin", "reward_bench"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(f"{cpu}, {args.threads} threads; Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    pairs = make_pairs(args.pairs, random.Random(1))
    sequences = [ids for pair in pairs for ids in pair]
    tokens = sum(map(len, sequences))
    print(f"{args.pairs} pairs, {tokens} tokens, {min(map(len, sequences))} to {max(map(len, sequences))}")

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(**SHAPE), attn_implementation="sdpa").eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engine = Engine(args.binary, folder, args.threads)
        settings = {}
        for by_length in (False, True):
            for batch in BATCHES:
                settings[batch, by_length] = score_padded(model, sequences, batch, by_length)[0]
        batch, by_length = min(settings, key=settings.get)
        for wanted in (False, True):
            print("transformers, " + ("sorted by length" if wanted else "order as given") + ": " + ", ".join(
                f"batch {b} {tokens / s:.0f}" for (b, sort), s in settings.items() if sort == wanted) + " tokens/s")
        ours, theirs, peaks = [], [], []
        for _ in range(args.repeats):
            peaks.append(peak())
            ours.append(engine.score(sequences))
            theirs.append(score_padded(model, sequences, batch, by_length))
        engine.process.stdin.close()
        engine.process.wait()

    computed = ours[0]["computed_tokens"]
    # The second answer finds the whole blocks of what it has in common with the first.
    shared = [len(os.path.commonprefix(pair)) // BLOCK * BLOCK for pair in pairs]
    assert sum(shared) == tokens - computed, (sum(shared), tokens - computed)
    useful = flops(map(len, sequences)) - flops(shared)
    seconds = statistics.median(run["seconds"] for run in ours)
    padded_seconds = statistics.median(s for s, _ in theirs)
    rate = statistics.median(peaks)
    spread = statistics.stdev(theirs[0][1])
    difference = max(abs(a - b) for a, b in zip(ours[0]["scores"], theirs[0][1])) / spread
    if difference > 1e-3:
        raise SystemExit(f"the two sides' scores differ by {difference:.1e} of their spread")
    print(f"scores agree to {difference:.0e} of their spread")
    print(f"machine: {rate / 1e9:.0f} GFLOP/s of matrix product")
    print(f"engine: {tokens / seconds:.0f} tokens/s, {args.pairs / seconds:.2f} pairs/s; computed {computed} tokens at "
          f"{useful / seconds / 1e9:.0f} GFLOP/s, {useful / seconds / rate:.0%} of the machine's rate")
    print(f"transformers, batch {batch}{', sorted' if by_length else ''}: {tokens / padded_seconds:.0f} tokens/s, "
          f"{args.pairs / padded_seconds:.2f} pairs/s")
    print(f"engine / transformers: {padded_seconds / seconds:.2f}")


if __name__ == "__main__":
    main()
