"""The scorer that has to agree with each comparison, asked at another server (`agreeing_target`): it decides as the same model
does when the run loads it itself, and while that server is away the run waits."""

import contextlib
import json
import subprocess
import time
import unittest
import urllib.request

from ports import free_port
from suite import BIN, SMOKE, Suite


class Scorer(unittest.TestCase):
    @contextlib.contextmanager
    def server(self, suite, digest, address):
        """A reward service of somebody else's with the model as-is; yields a function that tells how many items it has scored."""
        metrics = f"127.0.0.1:{free_port()}"
        with open(suite.store / "as-is.log", "ab") as log:
            process = subprocess.Popen([BIN / "almost-reward", "--listen", address, "--metrics_listen", metrics, "--store", suite.store,
                                        "--load", f"as-is=artifacts/{digest}"], stdout=log, stderr=log)

        def num_scored():
            with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("almost_reward_items_total{"))
        try:
            deadline = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{metrics}/readyz", timeout=5):
                    break
                self.assertIsNone(process.poll(), (suite.store / "as-is.log").read_text())
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            yield num_scored
        finally:
            process.kill()
            process.wait()

    def comparisons(self, suite, run):
        """Kept and dropped lines, and the scorer that the manifest names."""
        folder = suite.store / "runs" / run / "comparisons"
        manifest = json.loads((folder / "comparisons/manifest.json").read_text())
        return [(folder / name / f"{name}.jsonl").read_text() for name in ("comparisons", "dropped")], manifest["inputs"]["agreeing_scorer"]

    def test_another_servers_model_decides_as_ones_own_does(self):
        with Suite() as suite:
            artifacts = suite.run(SMOKE, "first")
            digest = next(name for stage, kind, name in artifacts if (stage, kind) == ("reward_model", "model")).removeprefix("artifacts/")

            def changes(**comparisons):
                file = suite.store / f"{next(reversed(comparisons))}.yaml"
                file.write_text(json.dumps({"comparisons": {"agreeing_scorer": "models/as-is"} | comparisons}))
                return file
            suite.run(SMOKE, "own", "--with", changes(agreeing_source=f"artifacts/{digest}"))
            lines, scorer = self.comparisons(suite, "own")
            self.assertIn("scorer_disagrees", lines[1])

            address = f"127.0.0.1:{free_port()}"
            elsewhere = changes(agreeing_target=address)
            with self.server(suite, digest, address) as num_scored:
                other = suite.run(SMOKE, "other", "--with", elsewhere)
                self.assertEqual(self.comparisons(suite, "other"), (lines, scorer))
                self.assertGreaterEqual(num_scored(), 2 * len(lines[0].splitlines()))

            suite.almost("run", SMOKE, "--id", "away", "--with", elsewhere, "--recompute")
            run = suite.wait_for("away", "RUN_STATE_PAUSED", "RUN_STATE_FAILED")
            self.assertEqual(run["state"], "RUN_STATE_PAUSED", run)
            self.assertIn(address, run["error"]["message"])
            with self.server(suite, digest, address):
                self.assertEqual(suite.follow("away"), other)


if __name__ == "__main__":
    unittest.main()
