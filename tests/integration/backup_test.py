"""The operations guide's back-up and restore: its commands, taken from the page, while a run is at work.

What was saved goes on in another suite and ends with the artifacts of the run that nothing happened to.
"""

import pathlib
import re
import subprocess
import tempfile
import time
import unittest

from suite import BIN, SMOKE, SOURCE, Suite

GUIDE = SOURCE / "common/docs/operations.md"


def commands(chapter):
    """The commands of the first code block of a chapter of the guide."""
    text = GUIDE.read_text().split(f"\n## {chapter}\n")[1]
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL).group(1)
    return [line.removeprefix("$ ") for line in block.splitlines()]


class Backup(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="almost-backup-")))

    def guide(self, chapter, **folders):
        """Runs the chapter's commands with $STORE and $BACKUP in the environment."""
        for command in commands(chapter):
            subprocess.run(command, shell=True, check=True, env={"PATH": "/usr/bin:/bin", **folders})

    def test_what_is_saved_in_the_middle_of_a_run_goes_on_elsewhere(self):
        backup, restored = self.folder / "backup", self.folder / "restored"
        with Suite() as suite:
            suite.almost("run", SMOKE, "--id", "saved")
            deadline = time.monotonic() + 60
            while not any(stage["id"] == "reward_model" and stage["state"] in ("STAGE_STATE_RUNNING", "STAGE_STATE_SUCCEEDED")
                          for stage in suite.json("runs", "show", "saved")["stages"]):
                self.assertLess(time.monotonic(), deadline)
            self.guide("Back up", STORE=str(suite.store), BACKUP=str(backup))
            self.assertEqual(suite.json("runs", "show", "saved")["state"], "RUN_STATE_RUNNING", "the back-up came too late to tell")
            wanted = suite.follow("saved")
            judge = suite.services()["judge"]["address"]  # the run's evaluation asks there

        self.guide("Restore", STORE=str(restored), BACKUP=str(backup))
        with Suite(store=restored) as suite, subprocess.Popen(
                [BIN / "almost", "world", "judge", "--listen", judge, "--metrics_listen", ""]) as judge_process:
            try:
                self.assertEqual(suite.follow("saved", timeout=120), wanted)
            finally:
                judge_process.terminate()


if __name__ == "__main__":
    unittest.main()
