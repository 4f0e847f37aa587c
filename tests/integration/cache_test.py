"""What one run has done, another takes over; a dry run foresees it; and a deleted run takes nothing from others."""

import tempfile
import unittest

from suite import SMOKE, SOURCE, STAGES, Failed, Suite


def done(run):
    """The stages that were done, or would be, not taken over."""
    return [stage["id"] for stage in run["stages"] if not stage["cached_from"]]


class Cache(unittest.TestCase):
    def test_changing_one_filter_does_again_only_what_follows(self):
        with Suite() as suite, tempfile.NamedTemporaryFile("w", suffix=".yaml") as changed:
            changed.write(SMOKE.read_text().replace("../../", f"{SOURCE}/").replace("min_rank_gap: 1", "min_rank_gap: 2"))
            changed.flush()
            fresh = suite.json("run", SMOKE, "--dry-run")
            self.assertEqual(done(fresh), list(STAGES))
            self.assertEqual([model["id"] for model in fresh["stages"][1]["plan"]["models"]], ["M", "S"])
            self.assertGreater(int(fresh["stages"][1]["plan"]["models"][0]["weight_bytes"]), 100_000)
            self.assertEqual(int(fresh["stages"][1]["plan"]["max_generated_tokens"]), 32 * 4 * 40)
            first = suite.run(SMOKE, "first")
            self.assertEqual(done(suite.json("run", SMOKE, "--dry-run")), ["report"])
            self.assertIn("taken from runs/first", suite.almost("run", SMOKE, "--dry-run"))

            self.assertEqual(suite.run(SMOKE, "same"), first)
            same = suite.json("runs", "show", "same")
            self.assertEqual(done(same), ["report"])
            self.assertEqual(float(same["cost"]["device_seconds"]), 0)

            expected = ["comparisons", "reward_model", "demonstrations", "sft", "rl", "evaluation", "report"]
            foreseen = suite.json("run", changed.name, "--dry-run")
            self.assertEqual(done(foreseen), expected)
            forecast = {stage["id"]: stage["plan"] for stage in foreseen["stages"]}
            self.assertEqual({forecast[stage]["measured_by"] for stage in expected[:-1]}, {"runs/first"})
            self.assertGreater(int(forecast["demonstrations"]["cost"]["scored_items"]), 0)
            other = suite.run(changed.name, "changed")
            self.assertEqual(done(suite.json("runs", "show", "changed")), expected)
            self.assertEqual([kind for kind in other if kind[0] in ("prompts", "responses")],
                             [kind for kind in first if kind[0] in ("prompts", "responses")])

            # All of it anew comes to the same, and costs what it did.
            self.assertEqual(suite.run(changed.name, "anew", "--recompute"), other)
            anew, before = suite.json("runs", "show", "anew"), suite.json("runs", "show", "first")
            self.assertEqual(done(anew), list(STAGES))
            self.assertEqual(anew["stages"][1]["cost"]["generated_tokens"], before["stages"][1]["cost"]["generated_tokens"])
            self.assertGreater(int(anew["cost"]["trained_tokens"]), 0)

            suite.almost("runs", "delete", "first")
            with self.assertRaisesRegex(Failed, 'no run "first"'):
                suite.almost("runs", "show", "first")
            self.assertFalse((suite.store / "runs/first").exists())
            self.assertEqual(suite.hashes("same"), first)
            self.assertEqual(done(suite.json("run", SMOKE, "--dry-run")), ["report"])


if __name__ == "__main__":
    unittest.main()
