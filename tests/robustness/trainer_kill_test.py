"""kill -9 of the trainer at random moments of reward_model → sft → ppo: its models are those of undisturbed jobs, to the bit.

    trainer_kill_test.py [--kills 100] [--seed 1]

The tests run a few kills; CMakeLists.txt here says how to run a hundred. The trainer is a process of this test, restarted at
once, so that nothing but chance says when it dies: while it starts, recovers, trains, writes a checkpoint or publishes. Jobs are
asked for with `almost train`, and write a checkpoint every other step.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = pathlib.Path(os.environ["ALMOST_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE / "tests/integration"))
from ports import free_port  # noqa: E402

BIN = pathlib.Path(os.environ["ALMOST_BINARY_DIR"]) / "bin"
OPTIONS = argparse.Namespace(kills=6, seed=1)
OPTIMIZER = {"learning_rate": 5e-4, "schedule": "SCHEDULE_LINEAR", "max_grad_norm": 1}
PATIENCE = 60  # seconds


def write_data(folder):
    draw = random.Random(5)
    with open(folder / "pairs.jsonl", "w") as pairs, open(folder / "dialogues.jsonl", "w") as dialogues:
        for _ in range(320):
            a, b = draw.randint(1, 6), draw.randint(1, 6)
            prompt, right = f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
            wrong = draw.choice(["No idea.", "7.", "Go away."])
            pairs.write(json.dumps({"prompt": prompt, "chosen": right, "rejected": wrong}) + "\n")
            dialogues.write(json.dumps({"messages": [{"role": "user", "content": prompt},
                                                     {"role": "assistant", "content": right}]}) + "\n")


class Trainer:
    """The trainer and a scorer on one store; kills what it is told to."""

    def __init__(self, folder):
        self.folder, self.store = folder, folder / "store"
        self.trainer_port, self.reward_port = free_port(), free_port()
        self.reward = None
        self.process = None
        self.seconds = {}  # that each job took

    def launch(self, binary, *arguments):
        with open(self.folder / f"{binary}.log", "ab") as log:
            return subprocess.Popen([BIN / binary, "--store", self.store, "--metrics_listen=127.0.0.1:0", *arguments],
                                    stdout=log, stderr=log, cwd=self.folder)

    def start(self):
        self.process = self.launch("almost-trainer", f"--listen=127.0.0.1:{self.trainer_port}", "--model_root", self.folder)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        for process in (self.process, self.reward):
            if process is not None:
                process.kill()
                process.wait()

    def score_with(self, digest):
        """A reward service with that model, once it answers."""
        self.reward = self.launch("almost-reward", f"--listen=127.0.0.1:{self.reward_port}", "--load",
                                  f"RM=artifacts/{digest}")
        deadline = time.monotonic() + PATIENCE
        while subprocess.run([BIN / "almost", "score", "--reward", f"127.0.0.1:{self.reward_port}", "--model", "models/RM",
                              "--prompt", "p", "--response", "r"], capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise AssertionError((self.folder / "almost-reward.log").read_text()[-2000:])
            time.sleep(0.05)

    def submit(self, job, spec):
        """Until it is acknowledged; the same id and spec again is harmless."""
        file = self.folder / f"{job}.json"
        file.write_text(json.dumps(spec))  # YAML too
        deadline = time.monotonic() + PATIENCE
        command = [BIN / "almost", "train", file, "--id", job, "--trainer", f"127.0.0.1:{self.trainer_port}"]
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
            if time.monotonic() > deadline or "Is `almost up` running" not in done.stderr:
                raise AssertionError(done.stderr)
            self.disturb()

    def state(self, job):
        try:
            return json.loads((self.store / "jobs" / job / "state.json").read_text())
        except FileNotFoundError:
            return {"state": "unknown"}

    def disturb(self):
        """Nothing; the killer's does."""
        time.sleep(0.05)

    def train(self, job, spec):
        """The digest of the job's model."""
        began = time.monotonic()
        self.submit(job, spec)
        while (state := self.state(job))["state"] != "succeeded":
            if state["state"] in ("failed", "cancelled"):
                raise AssertionError(f"{job}: {state}")
            if self.process.poll() is not None:
                raise AssertionError((self.folder / "almost-trainer.log").read_text()[-2000:])
            self.disturb()
        self.seconds[job] = time.monotonic() - began
        return state["output_digest"]

    def sequence(self):
        """Digests of all three models."""
        shutil.copytree(SOURCE / "common/world/models/S", self.folder / "base")
        common = {"base_model": "base", "seed": 3, "num_threads": 1, "checkpoint_steps": 2, "optimizer": OPTIMIZER}
        self.start()
        reward_model = self.train("rm", {**common, "reward_model": {
            "dataset": "pairs.jsonl", "epochs": 4, "batch_size": 8, "held_out_fraction": 0.1, "evaluation_steps": 10,
            "patience": 50}})
        sft = self.train("sft", {**common, "sft": {"dataset": "dialogues.jsonl", "epochs": 4, "batch_size": 8}})
        self.score_with(reward_model)
        ppo = self.train("ppo", {**common, "base_model": f"artifacts/{sft}", "ppo": {
            "dataset": "pairs.jsonl", "num_iterations": 40, "rollouts": 24, "epochs": 2, "minibatch_size": 12,
            "max_new_tokens": 24, "kl_coefficient": 0.05, "kl_target": 1, "value_learning_rate": 1e-3,
            "missing_stop_reward": -1, "normalize_rewards": True, "reward_target": f"127.0.0.1:{self.reward_port}",
            "reward_model": "models/RM"}})
        return {"rm": reward_model, "sft": sft, "ppo": ppo}


class Killer(Trainer):
    """Kills at random moments: `left` says how often in each job, `seconds` how long each takes undisturbed."""

    def __init__(self, folder, left, seconds, draw, at):
        super().__init__(folder)
        self.left, self.undisturbed, self.draw = left, seconds, draw
        self.at = at  # how many died in which state

    def disturb(self):
        job = next((job for job in self.left if self.state(job)["state"] != "succeeded"), "ppo")
        # While a job is being asked for most wait, or all kills would come before it has begun.
        if self.left[job] == 0 or (self.state(job)["state"] == "unknown" and self.draw.random() < 0.9):
            return time.sleep(0.05)
        time.sleep(self.draw.uniform(0, self.undisturbed[job]))
        state = self.state(job)
        if state["state"] == "succeeded":
            return None
        self.kill()
        self.left[job] -= 1
        self.at[(job, state["state"])] = self.at.get((job, state["state"]), 0) + 1
        self.start()
        return None


class TrainerKill(unittest.TestCase):
    def digests(self, make):
        with tempfile.TemporaryDirectory(prefix="almost-kill-") as name:
            folder = pathlib.Path(name)
            write_data(folder)
            trainer = make(folder)
            try:
                return trainer.sequence(), trainer
            finally:
                trainer.stop()

    def test_a_job_whose_files_are_away_keeps_its_checkpoints(self):
        """As when a volume is mounted after the trainer has started."""
        with tempfile.TemporaryDirectory(prefix="almost-kill-") as name:
            folder = pathlib.Path(name)
            write_data(folder)
            shutil.copytree(SOURCE / "common/world/models/S", folder / "base")
            trainer = Trainer(folder)
            try:
                trainer.start()
                trainer.submit("sft", {"base_model": "base", "seed": 3, "checkpoint_steps": 2, "optimizer": OPTIMIZER, "sft": {
                    "dataset": "dialogues.jsonl", "epochs": 50, "batch_size": 8}})
                checkpoints = trainer.store / "jobs/sft/work/checkpoints"
                self.wait(lambda: checkpoints.is_dir() and any(checkpoints.glob("step-*[0-9]")))
                trainer.kill()
                (folder / "base").rename(folder / "away")
                trainer.start()
                self.wait(lambda: trainer.state("sft")["state"] == "failed")
                self.assertIn("base_model: ", trainer.state("sft")["error"]["message"])
                (folder / "away").rename(folder / "base")
                self.assertTrue(any(checkpoints.glob("step-*[0-9]")))
                subprocess.run([BIN / "almost", "jobs", "resume", "sft", "--trainer", f"127.0.0.1:{trainer.trainer_port}"],
                               check=True, stdout=subprocess.DEVNULL)
                self.wait(lambda: trainer.state("sft")["state"] == "running")
            finally:
                trainer.stop()

    def wait(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def test_models_are_those_of_undisturbed_jobs(self):
        undisturbed, trainer = self.digests(Trainer)
        left = {job: OPTIONS.kills // 3 + (place < OPTIONS.kills % 3) for place, job in enumerate(undisturbed)}
        draw, at, sequences = random.Random(OPTIONS.seed), {}, 0
        # A job may end before all its kills: then the rest come in another sequence.
        while sum(left.values()) > 0:
            disturbed, _ = self.digests(lambda folder: Killer(folder, left, trainer.seconds, draw, at))
            self.assertEqual(disturbed, undisturbed)
            sequences += 1
        where = ", ".join(f"{job} {state} {count}" for (job, state), count in sorted(at.items()))
        print(f"{sum(at.values())} kills in {sequences} sequences: {where}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=OPTIONS.kills)
    parser.add_argument("--seed", type=int, default=OPTIONS.seed)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
