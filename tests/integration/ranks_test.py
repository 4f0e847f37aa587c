"""A trainer of two processes, as Kubernetes starts them: one job over both, ranks that are killed and come again.

A killed rank is started anew by nobody but this test; the one that is left waits for it.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from ports import free_port
from suite import BIN, SOURCE, Failed

STEPS = 400  # some seconds: a rank is to die before they are over


class Rank:
    """One process of the trainer; `events` are the names of the log lines that it has written."""

    def __init__(self, rank, folder, rendezvous):
        self.process = subprocess.Popen(
            [BIN / "almost-trainer", "--store", folder / "store", "--model_root", folder, "--listen", "127.0.0.1:0", "--metrics_listen",
             "127.0.0.1:0"], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(rendezvous)})
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self.changed:
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.lines.append({"event": "not JSON", "line": line})
                self.changed.notify_all()

    def wait_for(self, event, count=1, timeout=60):
        """The count-th line of that event."""
        with self.changed:
            found = lambda: [line for line in self.lines if line["event"] == event]
            if not self.changed.wait_for(lambda: len(found()) >= count, timeout):
                raise Failed(f"no {event} after {timeout} seconds:\n" + "\n".join(map(str, self.lines[-20:])))
            return found()[count - 1]

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(60)
        self.reader.join()
        self.process.stderr.close()
        return self.process.returncode


class Ranks(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="almost-ranks-")))
        self.port = free_port()
        self.ranks = {}
        shutil.copytree(SOURCE / "common/world/models/S", self.folder / "S")
        with open(self.folder / "dialogues.jsonl", "w") as dialogues:
            for i in range(STEPS * 4):
                dialogues.write(json.dumps({"messages": [
                    {"role": "user", "content": f"What is {i % 6 + 1} plus 2?"},
                    {"role": "assistant", "content": f"{i % 6 + 1} plus 2 is {i % 6 + 3}."}]}) + "\n")
        self.addCleanup(lambda: [rank.end(signal.SIGKILL) for rank in self.ranks.values() if rank.process.poll() is None])

    def start(self, rank):
        self.ranks[rank] = Rank(rank, self.folder, self.port)
        return self.ranks[rank]

    def call(self, method, request):
        port = self.ranks[0].wait_for("ready")["port"]
        done = subprocess.run([os.environ["GRPCURL"], "-plaintext", "-d", json.dumps(request), f"127.0.0.1:{port}",
                               f"almost.trainer.v1.TrainerService/{method}"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(done.stderr)
        return json.loads(done.stdout)

    def create(self, job):
        self.call("CreateJob", {"job_id": job, "spec": {
            "base_model": "S", "seed": 3, "checkpoint_steps": 5,
            "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1},
            "sft": {"dataset": "dialogues.jsonl", "epochs": 1, "batch_size": 4}}})

    def wait(self, job, condition, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition(status := self.call("GetJob", {"name": f"jobs/{job}"})):
            if time.monotonic() > deadline:
                raise Failed(f"after {timeout} seconds {status}")
            time.sleep(0.05)
        return status

    def step(self, job):
        return int(self.call("GetJob", {"name": f"jobs/{job}"}).get("step", 0))

    def ended(self, job):
        status = self.wait(job, lambda status: status["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED"))
        self.assertEqual(status["state"], "JOB_STATE_SUCCEEDED", status)
        return status["output_digest"]

    def test_ranks_that_die_come_again_and_the_job_ends_as_undisturbed(self):
        leader = self.start(0)
        self.create("undisturbed")
        follower = self.start(1)  # after the job, which waits for it
        wanted = self.ended("undisturbed")

        self.create("killed")
        self.wait("killed", lambda status: int(status.get("step", 0)) >= 7)
        follower.end(signal.SIGKILL)
        leader.wait_for("rank lost")
        lost = self.step("killed")  # may be far beyond the step of the check above, on a fast machine
        follower = self.start(1)
        follower.wait_for("following a job")
        self.wait("killed", lambda status: int(status.get("step", 0)) > lost)
        leader.end(signal.SIGKILL)
        follower.wait_for("job left")
        leader = self.start(0)
        self.assertEqual(self.ended("killed"), wanted)

        # A rank that is told to go takes a checkpoint with it.
        self.create("stopped")
        self.wait("stopped", lambda status: int(status.get("step", 0)) >= 7)
        self.assertEqual(follower.end(signal.SIGTERM), 128 + signal.SIGTERM)
        leader.wait_for("a rank is asked to stop")
        self.assertFalse([line for line in leader.lines if line["event"] == "rank lost"])
        follower = self.start(1)
        self.assertEqual(self.ended("stopped"), wanted)
        for rank in (leader, follower):
            self.assertEqual(rank.end(signal.SIGTERM), 128 + signal.SIGTERM)
            self.assertFalse([line for line in rank.lines if line["event"] == "not JSON"])

    def test_what_one_rank_cannot_do_fails_the_job_and_says_which(self):
        leader = self.start(0)
        self.create("bad")
        leader.wait_for("job started")  # and has found the file, which the follower will not
        os.rename(self.folder / "dialogues.jsonl", self.folder / "elsewhere.jsonl")
        self.start(1)
        status = self.wait("bad", lambda status: status["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED"))
        self.assertEqual(status["state"], "JOB_STATE_FAILED")
        self.assertIn("rank 1: ", status["error"]["message"])
        self.assertIn("dialogues.jsonl", status["error"]["message"])


if __name__ == "__main__":
    unittest.main()
