"""The policy is improved by whatever a recipe says: PPO's place taken by DPO, then by GRPO, in one store."""

import json
import unittest

from suite import SMOKE, Suite

CHANGES = SMOKE.parent


class RlAlgorithms(unittest.TestCase):
    def test_each_makes_a_policy_from_the_same_sft_model(self):
        with Suite() as suite:
            dpo = suite.run(SMOKE, "dpo", "--with", CHANGES / "dpo.yaml")
            planned = suite.almost("run", SMOKE, "--with", CHANGES / "grpo.yaml", "--dry-run")
            grpo = suite.run(SMOKE, "grpo", "--with", CHANGES / "grpo.yaml")
            runs = {run: suite.json("runs", "show", run) for run in ("dpo", "grpo")}
            shown = {run: suite.almost("runs", "show", run) for run in runs}
            for run in runs:
                suite.almost("report", run, "--to", suite.store / f"{run}.html")
            reports = {run: (suite.store / f"{run}.html").read_text(encoding="utf-8") for run in runs}
            policies = {run: next(name for stage, kind, name in hashes if (stage, kind) == ("rl", "model"))
                        for run, hashes in (("dpo", dpo), ("grpo", grpo))}
            ancestors = {run: suite.json("lineage", policy)["nodes"] for run, policy in policies.items()}
            pairs = [json.loads(line) for line in (suite.store / "runs/dpo/rl/pairs/pairs.jsonl").read_text(encoding="utf-8").splitlines()]

        self.assertRegex(planned, r"sft +taken from runs/dpo")
        self.assertRegex(planned, r"rl \(grpo\) +done")
        self.assertEqual([stage["id"] for stage in runs["grpo"]["stages"] if not stage["cached_from"]],
                         ["rl", "evaluation", "report"])
        self.assertNotEqual(policies["dpo"], policies["grpo"])
        for run, nodes in ancestors.items():
            self.assertIn(f"rl ({run})", shown[run])
            self.assertIn(f"ALGORITHM_{run.upper()}", reports[run])
            self.assertEqual((nodes[0]["kind"], nodes[0]["stage"]), ("model", "rl"))
            self.assertLessEqual({"prompts", "responses", "comparisons", "reward_model", "demonstrations", "sft"},
                                 {node["stage"] for node in nodes})
            self.assertIn("win_rate_rl", json.loads(runs[run]["summary_json"]))
        figures = {run: next(stage["figures"] for stage in shown["stages"] if stage["id"] == "rl")
                   for run, shown in runs.items()}
        self.assertEqual(figures["dpo"]["kept"], len(pairs))
        self.assertGreater(figures["dpo"]["accuracy"], 0)
        self.assertIn("kl", figures["grpo"])
        self.assertNotIn("value_loss", figures["grpo"])
        for pair in pairs:
            self.assertGreater(pair["chosen_score"], pair["rejected_score"])


if __name__ == "__main__":
    unittest.main()
