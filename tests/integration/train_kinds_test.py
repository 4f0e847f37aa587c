"""Every kind of job as a new user runs it: `almost train` on a Hugging Face folder and a JSON Lines file, followed on a terminal;
what comes out is opened in transformers.

Run with the comparisons' Python (deploy/setup --full).
"""

import json
import os
import pathlib
import pty
import shutil
import subprocess
import tempfile
import time
import unittest

from ports import free_port
from suite import BIN, SOURCE, Suite

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

OPTIMIZER = """
optimizer: {learning_rate: 5.0e-4, schedule: SCHEDULE_LINEAR, warmup_fraction: 0.1, max_grad_norm: 1}
"""
RL = """
  dataset: pairs.jsonl
  num_iterations: 3
  rollouts: 8
  epochs: 1
  minibatch_size: 8
  max_new_tokens: 16
  kl_coefficient: 0.05
  reward_target: {target}
  reward_model: models/RM
  guard_model: models/RM
"""
KINDS = {
    "pretrain": "pretrain: {dataset: texts.jsonl, num_tokens: 2048, sequence_tokens: 64, batch_sequences: 4}",
    "sft": "sft: {dataset: dialogues.jsonl, epochs: 1, batch_size: 8}",
    "reward_model": "reward_model: {dataset: pairs.jsonl, epochs: 2, batch_size: 8, held_out_fraction: 0.2, evaluation_steps: 4, "
                    "whole_prompts: true}",
    "dpo": "dpo: {dataset: pairs.jsonl, epochs: 1, batch_size: 8, beta: 0.1}",
    "ppo": "ppo:" + RL + "  value_learning_rate: 1.0e-3\n",
    "grpo": "grpo:" + RL + "  group_size: 4\n",
}


def write_data(folder):
    lines = {"texts": [], "dialogues": [], "pairs": []}
    for i in range(40):
        question, good = f"What is {i % 6 + 1} plus 2?", f"{i % 6 + 1} plus 2 is {i % 6 + 3}."
        lines["texts"].append({"text": f"{question} {good}"})
        lines["dialogues"].append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": good}]})
        lines["pairs"].append({"prompt": question, "chosen": good, "rejected": "No idea." if i % 2 else "7."})
    for name, values in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))


def on_a_terminal(command, timeout=120):
    """(exit code, what a terminal would have shown)."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(timeout), shown.decode(errors="replace")


class TrainKinds(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="almost-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        write_data(cls.folder)
        shutil.copytree(SOURCE / "common/world/models/S", cls.folder / "S")
        cls.suite = cls.enterClassContext(Suite(model_root=cls.folder))
        cls.train("reward_model")
        cls.reward = f"127.0.0.1:{free_port()}"
        scorer = subprocess.Popen([BIN / "almost-reward", f"--listen={cls.reward}", "--metrics_listen=127.0.0.1:0",
                                   "--model_root", cls.folder, "--load", "RM=out-reward_model"], stderr=subprocess.DEVNULL)
        cls.addClassCleanup(scorer.wait, 60)
        cls.addClassCleanup(scorer.terminate)
        deadline = time.monotonic() + 60
        while subprocess.run([BIN / "almost", "score", "--reward", cls.reward, "--model", "models/RM", "--prompt", "p",
                              "--response", "r"], capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, "no scorer"
            time.sleep(0.1)

    @classmethod
    def train(cls, kind):
        """What the terminal showed."""
        spec = cls.folder / f"{kind}.yaml"
        text = KINDS[kind].replace("{target}", getattr(cls, "reward", ""))
        spec.write_text(f"base_model: S\nseed: 1\nprompt_format: world\n{OPTIMIZER}{text}\n")
        code, shown = on_a_terminal(cls.suite.command("train", spec, "--id", kind, "--model_output", f"out-{kind}", "--follow"))
        assert code == 0, shown
        return shown

    def check(self, kind, shown=None):
        shown = shown or self.train(kind)
        self.assertIn("training", shown)
        self.assertIn("█", shown)  # a bar
        self.assertRegex(shown, r"\d+/\d+")
        self.assertIn(f"jobs/{kind}: SUCCEEDED, model artifacts/", shown)
        return self.folder / f"out-{kind}"

    def check_language_model(self, folder, chats):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        self.assertEqual((loading["missing_keys"], loading["unexpected_keys"]), ([], []))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not chats:
            self.assertIsNone(tokenizer.chat_template)
            ids = tokenizer("What is", return_tensors="pt").input_ids
        else:
            ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is 1 plus 2?"}], add_generation_prompt=True,
                                                return_tensors="pt")
        answer = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        self.assertGreater(answer.shape[1], ids.shape[1])

    def test_pretrain(self):
        self.check_language_model(self.check("pretrain"), chats=False)

    def test_sft(self):
        self.check_language_model(self.check("sft"), chats=True)

    def test_dpo(self):
        self.check_language_model(self.check("dpo"), chats=True)

    def test_ppo(self):
        self.check_language_model(self.check("ppo"), chats=True)

    def test_grpo(self):
        self.check_language_model(self.check("grpo"), chats=True)

    def test_reward_model(self):
        folder = self.check("reward_model", self.train("reward_model"))  # the same id and spec again: it follows what has ended
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        self.assertEqual((loading["missing_keys"], loading["unexpected_keys"], model.config.num_labels), ([], [], 1))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        messages = [{"role": "user", "content": "What is 1 plus 2?"}, {"role": "assistant", "content": "1 plus 2 is 3."}]
        theirs = model(tokenizer.apply_chat_template(messages, return_tensors="pt")).logits.item()
        ours = self.suite.json("score", "--reward", self.reward, "--model", "models/RM", "--prompt", messages[0]["content"],
                               "--response", messages[1]["content"])
        self.assertAlmostEqual(ours["items"][0]["result"]["raw_score"], theirs, places=4)
        measured = json.loads((folder / "almost.json").read_text())
        self.assertIn("held_out_accuracy", measured["training"]["measured"])
        self.assertEqual(set(measured["reward"]), {"mean", "std"})

    def test_a_broken_line_is_named_before_the_job_and_within_it(self):
        (self.folder / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
        self.assertIn("line 1: needs", self.refused("broken.jsonl"))
        (self.folder / "later.jsonl").write_text((self.folder / "pairs.jsonl").read_text() + '{"prompt": "a", "chosen": "b"}\n')
        self.assertIn("later.jsonl line 41: needs", self.refused("later.jsonl"))

    def refused(self, dataset):
        spec = self.folder / "refused.yaml"
        spec.write_text(f"base_model: S\n{OPTIMIZER}dpo: {{dataset: {dataset}, epochs: 1, batch_size: 8, beta: 0.1}}\n")
        code, shown = on_a_terminal(self.suite.command("train", spec, "--id", dataset.split(".")[0], "--follow"))
        self.assertNotEqual(code, 0)
        return shown.replace("\r\n", " ")


if __name__ == "__main__":
    unittest.main()
