"""`almost jobs` on a job of its own; `almost runs pause` in the middle of a training job: it stops at a checkpoint, stays so over restarts of the orchestrator
and of the trainer, and goes on to the same artifacts."""

import json
import os
import signal
import time
import unittest

from suite import SMOKE, Failed, Suite

PATIENCE = 60  # seconds


class Pause(unittest.TestCase):
    def wait_until(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"waited {PATIENCE} seconds until {what}")
            time.sleep(0.02)

    def kill(self, suite, service):
        pid = suite.services()[service]["pid"]
        os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: suite.services()[service]["pid"] not in (0, pid) and suite.is_ready(service),
                        f"{service} is there again")

    def test_a_job_is_paused_resumed_and_cancelled(self):
        with Suite() as suite:
            spec = suite.store.parent / "job.yaml"
            spec.write_text("base_model: common/world/models/S\noptimizer: {learning_rate: 0.001}\n"
                            "pretrain: {world_seed: 1, num_tokens: 400000, sequence_tokens: 64, batch_sequences: 4}\n")
            state = lambda job: suite.json("jobs", "show", job)["state"]
            for job in ("first", "second"):
                suite.almost("train", spec, "--id", job)
            self.wait_until(lambda: int(suite.json("jobs", "show", "first")["step"]) > 4, "it has taken a step")
            suite.almost("jobs", "pause", "first")
            self.wait_until(lambda: (state("first"), state("second")) == ("JOB_STATE_PAUSED", "JOB_STATE_RUNNING"),
                            "one has made room for the other")
            step = int(suite.json("jobs", "show", "first")["step"])
            listed = suite.almost("jobs", "list").splitlines()
            self.assertEqual([line.split()[:2] for line in listed],
                             [["JOB", "STATE"], ["second", "RUNNING"], ["first", "PAUSED"]])

            suite.almost("jobs", "cancel", "second")
            with self.assertRaisesRegex(Failed, "jobs/second was cancelled"):
                suite.almost("jobs", "watch", "second")
            suite.almost("jobs", "resume", "first")
            events = [json.loads(line) for line in suite.almost("--output", "json", "jobs", "watch", "first").splitlines()]
            self.assertEqual(events[-1]["state"], "JOB_STATE_SUCCEEDED")
            steps = [int(event["step"]) for event in events[:-1] if event.get("metrics")]
            self.assertEqual(steps, sorted(set(steps)), "no step was done twice")
            self.assertIn(step + 1, steps)
            with self.assertRaisesRegex(Failed, "no job"):
                suite.almost("jobs", "show", "third")

    def test_a_paused_run_goes_on_where_it_was(self):
        with Suite() as suite:
            changes = suite.store.parent / "changes.yaml"
            changes.write_text("rl: {spec: {num_iterations: 60}}\n")  # long enough to be met at work
            undisturbed = suite.run(SMOKE, "undisturbed", "--with", changes)

            suite.almost("run", SMOKE, "--id", "run", "--recompute", "--with", changes)
            jobs = lambda: [json.loads(job.read_text()) for job in suite.store.glob("jobs/run-rl-*/state.json")]
            taken = lambda: [len(events.read_text().splitlines()) for events in suite.store.glob("jobs/run-rl-*/events.jsonl")]
            self.wait_until(lambda: sum(taken()) > 4, "RL has taken a step")
            run = suite.json("runs", "pause", "run")
            self.assertEqual(run["state"], "RUN_STATE_PAUSED_BY_USER")
            self.wait_until(lambda: jobs()[0]["state"] == "paused", "its step is done")
            step = jobs()[0]["step"]
            self.assertLess(step, 60)

            for service in ("orchestrator", "trainer"):
                self.kill(suite, service)
            self.assertEqual(suite.json("runs", "show", "run")["state"], "RUN_STATE_PAUSED_BY_USER")
            self.assertEqual([(job["state"], job["step"]) for job in jobs()], [("paused", step)])

            suite.almost("runs", "resume", "run")
            self.assertEqual(suite.follow("run", timeout=PATIENCE), undisturbed)
            self.assertEqual([job["state"] for job in jobs()], ["succeeded"], "the same job, not another one")


if __name__ == "__main__":
    unittest.main()
