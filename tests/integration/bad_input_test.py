"""Bad input gets a clear error with the name of what is wrong, and leaves nothing half-done behind."""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import unittest

from suite import BIN, SMOKE, SOURCE, Failed, Suite

SFT = """\
base_model: common/world/models/S
sft: {{dataset: {dataset}, epochs: 1, batch_size: 8, max_tokens: 128}}
optimizer: {{learning_rate: 1.0e-3}}
"""

FAILED, PAUSED = "RUN_STATE_FAILED", "RUN_STATE_PAUSED"


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="almost-test-")
        # The models under a root of this test's own, so that it can damage copies.
        cls.root = pathlib.Path(cls.folder.name)
        (cls.root / "common/world").mkdir(parents=True)
        shutil.copytree(SOURCE / "common/world/models", cls.root / "common/world/models")
        cls.suite = Suite(model_root=cls.root).__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.suite.__exit__(None, None, None)
        cls.folder.cleanup()

    def refused(self, *arguments, names, suite=None):
        with self.assertRaises(Failed) as raised:
            (suite or self.suite).almost(*arguments)
        for name in names:
            self.assertIn(name, str(raised.exception))

    def recipe(self, old, new):
        """A copy of the smoke recipe in which `old` reads `new`, its files named from anywhere."""
        text = SMOKE.read_text()
        self.assertIn(old, text)
        file = self.root / "recipe.yaml"
        file.write_text(text.replace(old, new).replace("../../", f"{SOURCE}/"))
        return file

    def test_unknown_model_of_a_recipe(self):
        self.refused("run", self.recipe("models/S}", "models/XL}"), names=["models/XL"])

    def test_model_that_no_one_loaded(self):
        self.refused("generate", "--model", "nobody", "Hello", names=["models/nobody"])

    def test_model_folder_that_is_not_there(self):
        self.refused("generate", "--model", "no/such/folder", "Hello", names=["no/such/folder"])

    def test_model_folder_outside_the_root(self):
        self.refused("generate", "--model", "x=../../etc", "Hello", names=["../../etc"])

    def test_truncated_safetensors(self):
        broken = self.root / "broken"
        shutil.copytree(self.root / "common/world/models/S", broken)
        weights = broken / "model.safetensors"
        with open(weights, "r+b") as file:
            file.truncate(weights.stat().st_size - 1000)
        self.refused("generate", "--model", "x=broken", "Hello", names=["model.safetensors"])
        # The service lives on.
        self.assertTrue(self.suite.almost("generate", "--model", "common/world/models/S", "Human:"))

    def test_recipe_with_a_typo(self):
        self.refused("run", self.recipe("num_shots", "num_shot"),
                     names=["recipe.yaml:", "prompts.num_shot: unknown field", "did you mean num_shots?"])

    def test_recipe_with_a_value_out_of_range(self):
        self.refused("run", self.recipe("top_p: 0.95, max_new_tokens: 40}", "top_p: 1.5, max_new_tokens: 40}"),
                     names=["top_p", "1.5"])

    def test_more_shots_than_demonstrations(self):
        self.refused("run", self.recipe("demonstrations: good, shots: 3", "demonstrations: good, shots: 9"),
                     names=["shots", "9"])

    def test_prompt_longer_than_the_context(self):
        self.refused("generate", "--model", "S=common/world/models/S", "What is 1 plus 1? " * 200,
                     names=["512"])

    def test_empty_dataset(self):
        (self.root / "empty.jsonl").touch()
        spec = self.root / "sft.yaml"
        spec.write_text(SFT.format(dataset="empty.jsonl"))
        self.refused("train", spec, "--follow", names=["empty.jsonl"])

    def test_dataset_with_a_damaged_line(self):
        (self.root / "damaged.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}')
        spec = self.root / "sft.yaml"
        spec.write_text(SFT.format(dataset="damaged.jsonl"))
        self.refused("train", spec, "--follow", names=["damaged.jsonl"])

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            done = subprocess.run([BIN / "almost-generation", "--listen", address, "--metrics_listen", "127.0.0.1:0"],
                                  capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(address, done.stderr)

    def test_second_up_on_the_same_store(self):
        self.refused("up", "--ports", "auto", names=["already runs", str(self.suite.store)])

    def test_service_that_is_not_there(self):
        self.refused("--orchestrator", "127.0.0.1:1", "runs", "list",
                     names=["orchestrator at 127.0.0.1:1", "almost up"])

    def test_run_that_does_not_exist(self):
        self.refused("runs", "show", "nobody", names=['no run "nobody"'])

    @unittest.skipUnless(os.geteuid() == 0, "mounting a small tmpfs takes root")
    def test_full_disk(self):
        with Suite(model_root=self.root) as suite:
            undisturbed = suite.run(SMOKE, "run")
            files = {file.stat().st_ino: file.stat().st_size for file in suite.store.rglob("*") if file.is_file()}
        # Full at a write of the journal, of a model, of a job that is asked for.
        for share in (0.1, 0.4, 0.7):
            size = f"{int(share * sum(files.values())) // 1024}k"
            with self.subTest(size=size), tempfile.TemporaryDirectory(prefix="almost-test-") as disk:
                mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk],
                                         capture_output=True)
                if mounted.returncode != 0:
                    self.skipTest("tmpfs cannot be mounted here")
                try:
                    with Suite(model_root=self.root, store=disk + "/store") as suite:
                        suite.almost("run", SMOKE, "--id", "run")
                        # A trainer that cannot take a job for lack of room is waited for.
                        run = suite.wait_for("run", FAILED, PAUSED)
                        self.assertRegex(run["error"]["message"], f"{disk}.*([Nn]o space|disk is full)")
                        # What was published before is whole, by its hash; what was not is not there.
                        for _, _, name in suite.hashes("run"):
                            suite.almost("artifacts", "get", "run", name, "--to", self.root / "whole" / size)
                        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
                        if run["state"] == FAILED:
                            suite.almost("runs", "resume", "run")
                        self.assertEqual(suite.follow("run", timeout=60), undisturbed)
                finally:
                    subprocess.run(["umount", "-l", disk], check=True)


if __name__ == "__main__":
    unittest.main()
