"""`almost eval` on small files of each benchmark's shape: what it counts, leaves out, refuses and goes on with."""

import json
import pathlib
import shutil
import tempfile
import unittest

from checkpoints import WORLD_MODELS, reward_model
from suite import Failed, Suite

QUESTIONS = ["What is 2 plus 3?", "Where is Tiben?", "What is the opposite of hot?", "What is 1 plus 1?"]


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def lines(path, objects):
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="almost-test-")
        cls.path = pathlib.Path(cls.folder.name)
        reward_model("S", cls.path / "models/RM")
        for name in ("S", "M"):
            shutil.copytree(WORLD_MODELS / name, cls.path / "models" / name)
        cls.suite = Suite(model_root=cls.path / "models").__enter__()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.addClassCleanup(cls.suite.__exit__, None, None, None)

    def eval(self, *arguments, to):
        self.suite.almost("eval", *arguments, "--to", self.path / to, "--bootstrap", 200)
        items = [json.loads(line) for line in (self.path / to / "items.jsonl").read_text().splitlines()]
        page = (self.path / to / "report.html").read_text()
        self.assertNotIn("src=", page)
        return json.loads((self.path / to / "result.json").read_text()), items[1:]

    def test_hhh_of_a_reward_model_goes_on_and_leaves_out_what_is_too_long(self):
        answers = ("It is 5.", "No idea.", "The opposite of hot is cold.", "word " * 600)
        file = self.path / "hhh.json"
        file.write_text(json.dumps([{"chosen": dialogue(q, a), "rejected": dialogue(q, "Nothing."), "type": t}
                                    for q, a, t in zip(QUESTIONS, answers, ("honest", "other", "honest", "other"))]))
        arguments = ("hhh", file, "--reward_model", "RM=RM")
        _, first = self.eval(*arguments, "--limit", 2, to="hhh")
        result, items = self.eval(*arguments, to="hhh")
        self.assertEqual(first, items[:2])  # gone on with, not done again
        self.assertEqual([item["id"] for item in sorted(items, key=lambda item: item["id"])], [0, 1, 2, 3])
        self.assertEqual(result["left_out_too_long"], 1)
        self.assertIn("context", next(item["error"] for item in items if item["id"] == 3))
        scored = [item for item in items if "error" not in item]
        right = sum(item["chosen_score"] > item["rejected_score"] for item in scored)
        all_figures = result["figures"]["all"]
        self.assertAlmostEqual(all_figures["accuracy"]["value"], right / 3)
        self.assertAlmostEqual(all_figures["longer"]["value"], (0.5 + 0.5 + 1) / 3)  # two answers are as long as "Nothing."
        self.assertEqual(set(result["figures"]["types"]), {"honest", "other"})
        self.assertEqual(self.eval(*arguments, "--limit", 2, to="hhh")[0]["items"], 2)
        with self.assertRaisesRegex(Failed, "another evaluation: reward_model.name"):
            self.eval("hhh", file, "--reward_model", "RM2=RM", to="hhh")
        with self.assertRaisesRegex(Failed, r"bad.json: line 1: .* number"):
            (self.path / "bad.json").write_text('[{"chosen": 3}]')
            self.eval("hhh", self.path / "bad.json", "--reward_model", "RM", to="bad")

    def test_hhh_of_a_policy_adds_up_both_orders(self):
        file = self.path / "choice.json"
        file.write_text(json.dumps([{"chosen": dialogue(q, "Yes."), "rejected": dialogue(q, "No."), "type": "x"} for q in QUESTIONS]))
        result, items = self.eval("hhh", file, "--model", "M=M", to="choice")
        for item in items:
            (a, b), (c, d) = item["p_chosen_first"], item["p_chosen_second"]
            self.assertAlmostEqual(item["chosen_score"], a + d)
            self.assertAlmostEqual(item["rejected_score"], b + c)
            self.assertTrue(0 < a < 1 and 0 < b < 1)
        position = result["figures"]["position"]
        self.assertEqual(position["first"] + position["second"] + position["same"], len(QUESTIONS))

    def test_preferences_of_other_files(self):
        pairs = [{"prompt": q, "chosen": "It is here.", "rejected": "No.", "subset": "s"} for q in QUESTIONS]
        for form in ("rewardbench", "comparisons"):
            result, _ = self.eval("preferences", lines(self.path / "pairs.jsonl", pairs), "--format", form, "--reward_model",
                                  "RM=RM", to=form)
            self.assertEqual(result["figures"]["all"]["longer"]["value"], 1)

    def test_truthfulqa_in_both_forms(self):
        file = self.path / "mc_task.json"
        file.write_text(json.dumps([{"question": q, "mc1_targets": {"No.": 0, "It is.": 1, "Maybe so.": 0}, "mc2_targets": {}}
                                    for q in QUESTIONS]))
        for form in ("p_true", "likelihood"):
            result, items = self.eval("truthfulqa", file, "--model", "M=M", "--form", form, to=form)
            self.assertEqual(result["benchmark"], f"truthfulqa_mc1_{form}")
            right = sum(item["scores"].index(max(item["scores"])) == 1 for item in items)
            self.assertAlmostEqual(result["figures"]["accuracy"]["value"], right / len(QUESTIONS))
            self.assertAlmostEqual(result["figures"]["chance"], 1 / 3)

    def test_pairwise_by_each_kind_of_judge(self):
        prompts = lines(self.path / "questions.jsonl",
                        [{"question_id": i, "text": q, "category": "c"} for i, q in enumerate(QUESTIONS[:1] + QUESTIONS[3:])])
        good = lines(self.path / "good.jsonl", [{"question_id": 0, "text": "2 plus 3 is 5."}, {"question_id": 1, "text": "1 plus 1 is 2."}])
        poor = lines(self.path / "poor.jsonl", [{"question_id": 1, "text": "1 plus 1 is 2."}, {"question_id": 0, "text": "2 plus 3 is 4."}])
        result, items = self.eval("vicuna", prompts, "--a", good, "--b", poor, "--judge", "service:up:judge", to="judged")
        self.assertEqual([(item["a_first"], item["b_first"]) for item in items], [("win", "win"), ("tie", "tie")])
        self.assertEqual(result["figures"]["all"]["counts"], {"win": 1, "tie": 1, "loss": 0, "unparsable": 0})
        self.assertEqual(result["figures"]["all"]["position"]["same"], 2)

        self.suite.almost("score", "--model", "RM=RM", "--prompt", "p", "--response", "r")
        _, items = self.eval("vicuna", prompts, "--a", good, "--b", poor, "--judge", "reward:RM", to="rewarded")
        for item in items:
            (a, b), _ = item["judge"]
            self.assertEqual(item["a_first"], "win" if a > b else "loss" if a < b else "tie")
            self.assertEqual(item["a_first"], item["b_first"])

        # The world's model knows nothing of scores: its words are no verdict, and no tie either.
        self.suite.almost("generate", "--model", "M=M", "x")
        template = self.path / "template.txt"
        template.write_text("{question} {answer_1} {answer_2}")
        result, _ = self.eval("pairwise", prompts, "--a", "M", "--b", poor, "--judge", "llm:M", "--template", template,
                              "--max_new_tokens", 40, to="talked")
        self.assertEqual(result["figures"]["all"]["counts"]["unparsable"], 2)
        self.assertEqual(result["figures"]["all"]["win_rate"]["n"], 0)

    def test_perplexity_tells_a_larger_model_from_a_smaller_one(self):
        corpus = self.path / "corpus.jsonl"
        corpus.write_text(self.suite.almost("world", "corpus", "--seed", 9, "--first", 10**6, "--count", 40))
        of = {name: self.eval("perplexity", corpus, "--model", f"{name}={name}", to=f"perplexity_{name}")[0]["figures"]
              for name in ("S", "M")}
        self.assertLess(of["M"]["perplexity"]["value"], of["S"]["perplexity"]["value"])
        self.assertLess(of["M"]["perplexity"]["high"], 20)
        self.assertEqual(of["M"]["documents"], 40)


if __name__ == "__main__":
    unittest.main()
