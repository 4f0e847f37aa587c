"""The large world's way from nothing to the report, in little: vanilla models from its corpus, and its recipe on them."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from suite import BIN, SOURCE, STAGES, Suite

RECIPE = SOURCE / "deploy/recipes/world-large.yaml"
IN_LITTLE = ("--with", SOURCE / "deploy/recipes/world-large-dry-run.yaml")


class WorldLarge(unittest.TestCase):
    def test_recipe_runs_on_models_pretrained_from_its_corpus(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        models = folder / "models"
        done = subprocess.run([SOURCE / "common/world/models/pretrain", "--world", "large", "--dry_run", models],
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        spec = (models / "work/L-1.yaml").read_text()
        self.assertIn("world: large", spec)
        self.assertIn("PRECISION_BFLOAT16", spec)
        with Suite(model_root=models, judge="large") as suite:
            whole = suite.json("run", RECIPE, "--dry-run")
            self.assertEqual([stage["id"] for stage in whole["stages"]], list(STAGES))
            self.assertEqual([model["id"] for model in whole["stages"][1]["plan"]["models"]], ["L", "M", "S"])
            suite.run(RECIPE, "large", *IN_LITTLE)
            summary = json.loads(suite.json("runs", "show", "large")["summary_json"])
            evaluation = json.loads((suite.store / "runs/large/evaluation/evaluation/evaluation.json").read_text())
            answers = (suite.store / "runs/large/evaluation/evaluation/answers.jsonl").read_text().splitlines()
        questions = subprocess.run([BIN / "almost", "world", "questions", "--world", "large", "--count", "2000"],
                                   capture_output=True, text=True, check=True).stdout.splitlines()
        # Asked what no other world asks, and every answer judged by the large world's truth.
        self.assertEqual(evaluation["judge"], "a JudgeService")
        self.assertEqual(len(answers), 12)
        for line in map(json.loads, answers):
            self.assertIn("score", line["answers"]["L-3-good"], line["prompt"])
            self.assertIn(" ".join(line["prompt"].split()[:2]), {" ".join(text.split()[:2]) for text in questions})
        for figure in ("win_rate_sft", "win_rate_rl"):
            self.assertEqual(summary[figure]["n"], 12)


if __name__ == "__main__":
    unittest.main()
