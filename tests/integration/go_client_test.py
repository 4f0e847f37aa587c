"""clients/go as its README has it: stubs made, the example built, every service called; and a run followed over a kill -9."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

from suite import SOURCE, Failed, Suite

GO = pathlib.Path(os.environ["GO"])
MODULE = SOURCE / "clients/go"


def run(*command, cwd, timeout=300):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "PATH": f"{GO.parent}:{os.environ['PATH']}"})
    if done.returncode != 0:
        raise Failed(done.stdout + done.stderr)
    return done.stdout


class GoClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="almost-test-")))
        # A checkout without what an earlier `generate` may have left in this one.
        shutil.copytree(MODULE, folder / "clients/go", ignore=shutil.ignore_patterns("gen"))
        for path in ("clients/service_config.json", "proto", "deploy"):
            (folder / path).symlink_to(SOURCE / path)
        cls.module, cls.example = folder / "clients/go", folder / "example"
        run("./generate", cwd=cls.module)
        run("go", "build", "-o", cls.example, ".", cwd=cls.module)
        cls.suite = cls.enterClassContext(Suite())

    def call(self, *arguments):
        return run(self.example, "--store", self.suite.store, *arguments, cwd=self.module)

    def test_a_run_is_followed_over_a_kill_of_the_orchestrator_and_then_every_service_answers(self):
        with subprocess.Popen([self.example, "--store", self.suite.store, "orchestrator"], stdout=subprocess.PIPE, text=True) as run_it:
            lines = []
            while not lines or "responses: STAGE_STATE_RUNNING" not in lines[-1]:
                lines.append(run_it.stdout.readline())
                self.assertTrue(lines[-1], lines)  # empty: it has ended
            os.kill(self.suite.services()["orchestrator"]["pid"], signal.SIGKILL)
            lines += run_it.stdout.readlines()
        self.assertEqual(run_it.returncode, 0, lines)
        self.assertIn("  runs/go-example: RUN_STATE_SUCCEEDED\n", lines)

        output = self.call()
        self.assertEqual([line for line in output.splitlines() if not line.startswith(" ")],
                         ["generation", "simulator", "orchestrator", "reward", "trainer", "judge"])
        answer, stream = (line.split(":", 1)[1] for line in output.splitlines() if line.startswith(("  answer:", "  stream:")))
        self.assertEqual(answer, stream)
        for wanted in ("2 plus 3 is 5", "attempt 0: ", "score ", "step 4: loss ", "VERDICT_A"):
            self.assertIn(wanted, output)

    def test_an_error_says_what_is_wrong_and_where(self):
        with self.assertRaisesRegex(Failed, "Unavailable: "):
            self.call("--target", "judge=127.0.0.1:1", "judge")
        with self.assertRaisesRegex(Failed, 'no service is called "jugde"'):
            self.call("jugde")

    def test_the_code_is_formatted_and_vetted(self):
        self.assertEqual(run("gofmt", "-l", ".", cwd=self.module), "")
        run("go", "vet", "./...", cwd=self.module)


if __name__ == "__main__":
    unittest.main()
