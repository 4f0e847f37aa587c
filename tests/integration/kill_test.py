"""kill -9 of a service in the middle of a stage: the supervisor restarts it, and the run ends with the same artifacts.

By default one service a stage that the stage is using, each service at least once; with --every, every service in every
stage.

A stage of world-smoke is over within milliseconds, so a kill that follows an event would often come too late. Instead the
orchestrator, which leads every stage, is stopped (SIGSTOP) again and again for as long as it takes to look into its journal.
Once a stage is found at work, the service is killed before the orchestrator may go on: the stage cannot have ended.
"""

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import sys
import time
import unittest

from suite import SERVICES, SMOKE, STAGES, Suite

EVERY = "--every" in sys.argv
USED = {"prompts": "simulator", "responses": "generation", "comparisons": "orchestrator", "reward_model": "trainer",
        "demonstrations": "reward", "sft": "trainer", "rl": "trainer", "evaluation": "generation",
        "report": "orchestrator"}
TRAINING = ("reward_model", "sft", "rl")
RUNNING, SUCCEEDED = 2, 3  # almost.orchestrator.v1.StageState in the journal
STARTED = 1                # an item's state there
PATIENCE = 60              # seconds


class Missed(Exception):
    """The stage was over before it was seen at work."""


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE} seconds until {what}")
        os.sched_yield()


def stopped(pid):
    """Whether no thread of a process can go on."""
    try:
        stats = [stat.read_text() for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats)


@contextlib.contextmanager
def held(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: stopped(pid), f"process {pid} stops")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def let_go_if_locked():
    """For a look into the journal of a stopped process. Stopped while it held a lock of the write-ahead log that readers need,
    it has to go on before anyone can look; SQLite says so after ten seconds."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname not in ("SQLITE_PROTOCOL", "SQLITE_BUSY"):
            raise


class Killer:
    """Kills services of a suite while its only run, "run", is in a given stage."""

    def __init__(self, suite):
        self.suite = suite
        self.journal = sqlite3.connect(f"file:{suite.store}/journal.db?mode=ro", uri=True, isolation_level=None)
        self.dead = set()

    def pid(self, service):
        """Of the service's process, once it has one again."""
        wait_until(lambda: self.suite.services()[service]["pid"] not in self.dead | {0}, f"{service} is restarted")
        return self.suite.services()[service]["pid"]

    def state(self, stage):
        row = self.journal.execute("SELECT state FROM stages WHERE stage = ?", (stage.encode(),)).fetchone()
        return row[0] if row else None

    def at_work(self, stage):
        """Whether the stage runs and, where it has items, one of them is under way; of a training stage, its job."""
        if self.state(stage) != RUNNING:
            return False
        if stage in TRAINING:
            jobs = self.suite.store.glob(f"jobs/run-{stage}-*/state.json")
            return any(json.loads(job.read_text())["state"] == "running" for job in jobs)
        items = self.journal.execute("SELECT state FROM items WHERE stage = ?", (stage.encode(),)).fetchall()
        return stage in ("comparisons", "report") or (STARTED,) in items

    def kill(self, stage, service):
        """Waits until the stage is at work and kills the service then."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            orchestrator = self.pid("orchestrator")
            with held(orchestrator), let_go_if_locked():
                if self.state(stage) == SUCCEEDED:
                    raise Missed(stage)
                if not self.at_work(stage):
                    continue
                victim = self.pid(service)
                with held(victim):  # its part of the stage could end by itself
                    if not self.at_work(stage):
                        continue
                    os.kill(victim, signal.SIGKILL)
                self.dead.add(victim)
                return
        raise AssertionError(f"stage {stage} did not begin within {PATIENCE} seconds")


class Kill(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Suite() as suite:
            cls.undisturbed = suite.run(SMOKE, "run")

    def check(self, victims):
        """Kills victims[stage] in each stage; what was missed is tried again in another run."""
        left = dict(victims)
        for _ in range(10):
            with Suite() as suite:
                suite.almost("run", SMOKE, "--id", "run")
                killer = Killer(suite)
                for stage, service in dict(left).items():
                    with contextlib.suppress(Missed):
                        killer.kill(stage, service)
                        del left[stage]
                for service in SERVICES:
                    killer.pid(service)
                    wait_until(lambda: suite.is_ready(service), f"{service} is ready again")
                self.assertEqual(suite.follow("run", timeout=PATIENCE), self.undisturbed)
            if not left:
                return
        self.fail(f"stages that were over too soon in every run: {sorted(left)}")

    @unittest.skipIf(EVERY, "part of the tests without --every")
    def test_the_service_that_a_stage_uses(self):
        self.assertEqual((set(USED), set(USED.values())), (set(STAGES), set(SERVICES)))
        self.check(USED)

    @unittest.skipUnless(EVERY, "a minute and a half; part of tests/run --full")
    def test_every_service_in_every_stage(self):
        # Turn by turn, so that no service dies more often than its backoff forgives.
        for turn in range(len(SERVICES)):
            with self.subTest(turn=turn):
                self.check({stage: SERVICES[(i + turn) % len(SERVICES)] for i, stage in enumerate(STAGES)})


if __name__ == "__main__":
    unittest.main(argv=[argument for argument in sys.argv if argument != "--every"])
