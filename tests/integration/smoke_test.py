"""The whole method on the tiny world, in little: it ends, and its artifacts are a function of the seed."""

import gzip
import json
import re
import unittest

from suite import SMOKE, STAGES, Suite


class Smoke(unittest.TestCase):
    def inspected(self, suite, *what):
        """The rows of the page that `almost inspect` makes."""
        page = suite.almost("inspect", *what, "--to", suite.store / "page.html").strip()
        html = open(page, encoding="utf-8").read()
        rows = []
        for piece in re.findall(r'<script type="application/json" class="rows">(.*?)</script>', html, re.DOTALL):
            piece = json.loads(piece)
            rows += [dict(zip(piece["columns"], row)) for row in piece["rows"]]
        return rows

    def test_same_seed_same_artifacts_and_another_seed_others(self):
        with Suite() as suite:
            first = suite.run(SMOKE, "first")
            summary = json.loads(suite.json("runs", "show", "first")["summary_json"])
            report = suite.almost("report", "first", "--to", suite.store / "report.html").strip()
            html = open(report, encoding="utf-8").read()
            policy = next(name for stage, kind, name in first if (stage, kind) == ("rl", "model"))
            ancestors = suite.json("lineage", policy)["nodes"]
            pages = {dataset: self.inspected(suite, "first", "--dataset", dataset)
                     for dataset in ("prompts", "responses", "comparisons", "demonstrations")}
            candidates = suite.store / "runs/first/demonstrations/candidates/candidates.jsonl.gz"
            pages["file"] = self.inspected(suite, candidates)
            with gzip.open(candidates, "rt", encoding="utf-8") as lines:
                num_candidates = sum(len(turn["candidates"]) for line in lines for turn in json.loads(line)["turns"])
            for which, file in (("prompts", "prompts.jsonl"), ("comparisons/dropped", "dropped.jsonl")):
                suite.almost("artifacts", "get", "first", which, "--to", suite.store / "got")
                self.assertTrue((suite.store / "got" / file).is_file(), which)
            stages = {stage["id"]: stage["figures"] for stage in suite.json("runs", "show", "first")["stages"]}
        with Suite() as suite:  # a store of its own: nothing can be taken over from the first run
            second = suite.run(SMOKE, "second")
            third = suite.run(SMOKE, "third", "--seed", "2")
            compared = suite.json("runs", "compare", "second", "third")
            of_each = [json.loads(suite.json("runs", "show", run)["summary_json"]) for run in ("second", "third")]

        self.assertEqual(first, second)
        self.assertEqual([entry[:2] for entry in first], [entry[:2] for entry in third])
        same = {stage for (stage, kind, name), other in zip(first, third) if name == other[2]}
        self.assertEqual(same, set(), "stages whose artifacts do not depend on the seed")
        self.assertLessEqual({stage for stage, _, _ in first}, set(STAGES))

        for figure in ("rm_accuracy", "rm_accuracy_length_only", "rm_accuracy_likelihood", "win_rate_sft", "win_rate_rl"):
            self.assertLessEqual(summary[figure]["low"], summary[figure]["value"], figure)
            self.assertLessEqual(summary[figure]["value"], summary[figure]["high"], figure)
            self.assertGreater(summary[figure]["n"], 0, figure)
        self.assertTrue({"best_of_n", "stage_seconds", "artifact_hashes"} <= summary.keys())
        for figure in ("rm_accuracy", "win_rate_rl"):
            values = [one[figure]["value"] for one in of_each]
            self.assertEqual(compared[figure]["values"], values)
            self.assertAlmostEqual(compared[figure]["mean"], sum(values) / 2)
            self.assertAlmostEqual(compared[figure]["standard_error"], abs(values[0] - values[1]) / 2)
        # The policy goes back to everything that made it.
        self.assertLessEqual(set(STAGES) - {"evaluation", "report"}, {node["stage"] for node in ancestors})
        # A page to read each dataset with: every row, kept or dropped; demonstrations among all their candidates.
        kept = {dataset: sum(row["outcome"] == "kept" for row in rows) for dataset, rows in pages.items()}
        self.assertEqual(kept["prompts"], stages["prompts"]["kept"])
        self.assertEqual(len(pages["responses"]), stages["responses"]["responses"])
        self.assertEqual(kept["comparisons"], stages["comparisons"]["kept"])
        self.assertEqual(kept["demonstrations"], stages["demonstrations"]["kept"])
        figures = stages["demonstrations"]
        self.assertEqual(len(pages["demonstrations"]),
                         figures["kept"] + sum(count for name, count in figures.items() if name.startswith("dropped_")))
        self.assertEqual(num_candidates, figures["candidates"])
        self.assertEqual(len(pages["file"]), len(pages["demonstrations"]))
        self.assertIn("<html", html)
        self.assertNotIn("src=\"http", html)


if __name__ == "__main__":
    unittest.main()
