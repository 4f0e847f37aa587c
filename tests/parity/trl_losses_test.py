"""The first 50 losses of SFT, reward model and DPO are TRL's: same checkpoint, data, order and hyperparameters.

The model is the tiny world's M, the data its own answers, 8 samples a step. Where TRL does otherwise on its own:

- Its reward model's score is read from the last token that is not the padding token (transformers). A tokenizer without a
  padding token gets end-of-text for one, and then the end-of-text that TRL itself has put behind the answer is never read.
  Here padding is another token; test_padding_with_end_of_text_changes_trl_s_scores shows the difference.
- A config.json that names end-of-text as the padding token takes its embedding out of training (nn.Embedding's padding_idx).
- Pairs longer than max_length are left out by TRL's reward trainer and cut by ours (the data here have none).
- A linear warm-up of transformers gives the first step a learning rate of 0; ours gives it its share (there is none here).
- DPOTrainer tokenizes prompt and answer by themselves, so that a word's blank goes with neither; it is given our token ids.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["ALMOST_SOURCE_DIR"])
RUN_JOB = os.environ["RUN_JOB"]
MODEL = SOURCE / "common/world/models/M"
STEPS, BATCH, SEED = 50, 8, 11
HYPER = {"learning_rate": 1e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0}
TOLERANCE = 1e-3
UNUSED = "ÿ"  # a byte that no text has


def answers():
    """Sums with right and wrong answers, of mixed lengths."""
    draw = random.Random(3)
    for _ in range(STEPS * BATCH // 2):  # two epochs
        a, b = draw.randint(1, 6), draw.randint(1, 6)
        right = f"{a} plus {b} is {a + b}." + " You count up from there." * draw.randint(0, 3)
        wrong = draw.choice(["No idea.", f"{a} plus {b} is {a + b + 1}.", "Good question!" * draw.randint(1, 3)])
        yield f"What is {a} plus {b}?", right, wrong


def write(folder, kind):
    with open(folder / f"{kind}.jsonl", "w") as file:
        for question, right, wrong in answers():
            line = {"prompt": question, "chosen": right, "rejected": wrong}
            if kind == "sft":
                line = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": right}]}
            file.write(json.dumps(line) + "\n")
    return folder / f"{kind}.jsonl"


def lines(command, folder):
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        raise AssertionError(done.stderr[-4000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


class TrlLosses(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="almost-trl-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def ours(self, kind, base_model, dataset, **more):
        passes = {"dataset": dataset.name, "epochs": 2, "batch_size": BATCH, **more}
        spec = {"base_model": base_model.name, "seed": SEED, "num_threads": 2, "prompt_format": "world", kind: passes,
                "optimizer": {**HYPER, "schedule": "SCHEDULE_COSINE"}}
        (self.folder / "spec.json").write_text(json.dumps(spec))
        return [step["loss"] for step in lines([RUN_JOB, "spec.json", self.folder / f"work-{kind}"], self.folder)]

    def theirs(self, kind, model, dataset, order, **more):
        job = {"kind": kind, "model": str(model), "dataset": str(dataset), "order": order, "num_threads": 2,
               "schedule": "cosine", **HYPER, **more}
        (self.folder / "job.json").write_text(json.dumps(job))
        steps = lines([sys.executable, SOURCE / "tests/parity/trl_side.py", "job.json"], self.folder)
        return [step["loss"] for step in steps if "loss" in step]

    def model(self, reward):
        """A folder of its own, beneath which alone a job's files are looked for."""
        import torch
        from transformers import AutoModelForSequenceClassification
        folder = self.folder / "model"
        if reward:
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)
            model.save_pretrained(folder)
        folder.mkdir(exist_ok=True)
        for file in MODEL.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def check(self, kind, **more):
        dataset, model = write(self.folder, kind), self.model(kind == "reward_model")
        order = lines([RUN_JOB, "order", SEED, STEPS * BATCH // 2, 2, BATCH], self.folder)
        ours, theirs = self.ours(kind, model, dataset, **more), self.theirs(kind, model, dataset, order, pad=UNUSED, **more)
        self.assertEqual((len(ours), len(theirs)), (STEPS, STEPS))
        worst = max(abs(a - b) for a, b in zip(ours, theirs))
        print(f"{kind}: losses from {ours[0]:.4f} to {ours[-1]:.4f}, largest difference from TRL's {worst:.1e}")
        self.assertLess(worst, TOLERANCE)
        self.assertLess(ours[-1], 0.9 * ours[0])  # something was learned on the way
        return ours

    def test_sft(self):
        self.check("sft")

    def test_reward_model(self):
        self.check("reward_model")

    def test_dpo(self):
        self.check("dpo", beta=0.1)

    def test_padding_with_end_of_text_changes_trl_s_scores(self):
        dataset, model = write(self.folder, "reward_model"), self.model(True)
        order = lines([RUN_JOB, "order", SEED, STEPS * BATCH // 2, 2, BATCH], self.folder)[:1]
        other, own = (self.theirs("reward_model", model, dataset, order, pad=pad)[0] for pad in (UNUSED, None))
        self.assertGreater(abs(other - own), TOLERANCE)


if __name__ == "__main__":
    unittest.main()
