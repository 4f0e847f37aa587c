"""The verbs of `almost` that need no service, and what it says when one is missing."""

import json
import os
import pathlib
import subprocess
import tempfile
import time
import unittest

from ports import free_port
from suite import BIN, SOURCE


class Cli(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="almost-test-")
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def almost(self, *arguments, code=0):
        done = subprocess.run([BIN / "almost", *map(str, arguments)], cwd=self.path, capture_output=True, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stderr if code else done.stdout

    def test_every_verb_explains_itself(self):
        help_of_all = self.almost("--help-all")
        for verb in ("up", "run", "runs", "artifacts", "lineage", "report", "generate", "score", "eval", "inspect", "train", "jobs", "data", "world",
                     "doctor"):
            self.assertRegex(help_of_all, rf"(?m)^\s*{verb}\b")
            self.assertIn("Usage", self.almost(verb, "--help"))

    def test_version(self):
        self.assertRegex(self.almost("--version"), r"^almost \d+\.\d+\.\d+\n$")

    def test_a_wrong_command_line_is_exit_code_2(self):
        self.assertIn("subcommand", self.almost(code=2))
        self.assertIn("--nonsense", self.almost("runs", "list", "--nonsense", code=2))
        self.assertIn("xml", self.almost("--output", "xml", "doctor", code=2))

    def test_numbers_below_zero_are_no_large_ones(self):
        for arguments in (("world", "questions", "--count", 1, "--seed", -1), ("world", "corpus", "--count", -1),
                          ("generate", "--model", "m", "a", "--seed", -1), ("run", "r.yaml", "--seed", -1), ("train", "j.yaml", "--seed", -1),
                          ("eval", "perplexity", "f", "--model", "m", "--bootstrap", 0), ("eval", "perplexity", "f", "--model", "m", "--limit", -1),
                          ("data", "prompts", "--input", "a", "--output", "b", "--num_prompts", -1)):
            self.assertIn("-1" if -1 in arguments else "0", self.almost(*arguments, code=2))

    def test_a_service_that_is_away_is_named_with_its_address_and_a_hint(self):
        for arguments, service in ((("runs", "list"), "orchestrator"), (("artifacts", "ls", "x"), "orchestrator"),
                                   (("generate", "--model", "m", "x"), "generation"),
                                   (("score", "--model", "m", "--prompt", "p", "--response", "r"), "reward")):
            error = self.almost(*arguments, f"--{service}", "127.0.0.1:1", code=1)
            self.assertIn(f"{service} at 127.0.0.1:1", error)
            self.assertIn("almost up", error)

    def test_tls_of_the_services_is_checked_and_answered(self):
        def openssl(arguments):
            subprocess.run(["openssl", *arguments.split()], cwd=self.path, check=True, capture_output=True)

        for name in ("ca", "server", "client"):
            openssl(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.pem"
                    + (" -x509" if name == "ca" else ""))
        (self.path / "san").write_text("subjectAltName=DNS:localhost\n")
        for name in ("server", "client"):
            openssl(f"x509 -req -in {name}.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out {name}.pem")
        port = free_port()
        reward = subprocess.Popen([BIN / "almost-reward", f"--listen=127.0.0.1:{port}", "--metrics_listen=127.0.0.1:0",
                                   "--tls_cert=server.pem", "--tls_key=server.key", "--tls_client_ca=ca.pem"], cwd=self.path,
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(reward.wait, 60)
        self.addCleanup(reward.terminate)
        score = ("score", "--model", "none", "--prompt", "p", "--response", "r", "--reward", f"localhost:{port}")
        known = ("--tls_ca", "ca.pem", "--tls_cert", "client.pem", "--tls_key", "client.key")
        deadline = time.monotonic() + 30
        while "models/none" not in (error := self.almost(*score, *known, code=1)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertIn("models/none", error)  # it answers that it has no such model
        for stranger in ((), ("--tls_ca", "ca.pem")):
            self.assertNotIn("models/none", self.almost(*score, *stranger, code=1))
        self.assertIn("gone.pem", self.almost(*score, "--tls_ca", "gone.pem", code=1))
        self.assertIn("go together", self.almost(*score, "--tls_ca", "ca.pem", "--tls_cert", "client.pem", code=1))

    def test_recipe_errors_name_file_line_and_field(self):
        (self.path / "recipe.yaml").write_text("seed: 1\nprompts:\n  num_promts: 4\n")
        self.assertIn("recipe.yaml:3: prompts.num_promts: unknown field of PromptStage; did you mean num_prompts?",
                      self.almost("run", "recipe.yaml", code=1))

    def test_compare_filter_and_prompts_work_on_plain_files(self):
        responses = self.path / "responses"
        responses.mkdir()
        (responses / "prompts.txt").write_text("How do I bake bread at home?\nWhere can I learn to swim?\n")
        long = "You knead flour, water, salt and yeast, let it rise, and bake it for an hour."
        (responses / "large.json").write_text(json.dumps([long, "Bad one?"]))
        (responses / "small.json").write_text(json.dumps(["Buy it at the shop around the corner, it is cheap and good.",
                                                          "At the public pool, where courses are given each week."]))
        (self.path / "rubric.json").write_text('["large", "small"]')

        counts = json.loads(self.almost("--output", "json", "data", "filter", "--responses", responses, "--output",
                                        "filtered"))
        self.assertEqual(counts, {"dropped_too_short": 1, "kept": 3})
        self.assertEqual(json.loads((self.path / "filtered/large.json").read_text()), [long, "BAD"])

        self.almost("data", "compare", "--responses", "filtered", "--rubric", "rubric.json", "--output", "pairs.json")
        pairs = json.loads((self.path / "pairs.json").read_text())
        self.assertEqual([list(pair) for pair in pairs], [["prompt", "chosen", "rejected", "meta"]])
        self.assertEqual((pairs[0]["chosen"], pairs[0]["meta"]), (long, "large-vs-small"))

        (self.path / "mined.txt").write_text("How do I bake bread at home?\nHow do I bake good bread at home?\nShort\n")
        counts = json.loads(self.almost("--output", "json", "data", "prompts", "--input", "mined.txt", "--output", "kept.txt"))
        self.assertEqual(counts, {"kept": 1, "dropped_too_short": 1, "dropped_too_similar": 1})
        self.assertEqual((self.path / "kept.txt").read_text(), "How do I bake bread at home?\n")

    def test_missing_files_are_named_and_nothing_is_written(self):
        self.assertIn("gone.json", self.almost("data", "compare", "--responses", ".", "--rubric", "gone.json", "--output",
                                               "pairs.json", code=1))
        self.assertFalse((self.path / "pairs.json").exists())

    def test_an_output_that_cannot_be_written_is_told_of(self):
        with open("/dev/full", "w") as full:
            for verb in ("doctor", "world questions --count 3 --output json", "data prompts --input mined.txt --output kept.txt"):
                (self.path / "mined.txt").write_text("How do I bake bread at home?\n")
                done = subprocess.run([BIN / "almost", *verb.split()], cwd=self.path, stdout=full, stderr=subprocess.PIPE,
                                      text=True, timeout=60)
                self.assertEqual((done.returncode, "standard output" in done.stderr), (1, True), (verb, done.stderr))
        (self.path / "rows.jsonl").write_text('{"prompt": "a"}\n')
        for file, why in (("gone/page.html", "gone"), (".", "folder"), ("pipe", "not a file")):
            if file == "pipe":
                os.mkfifo(self.path / file)
            for verb in (("inspect", "rows.jsonl", "--to"), ("data", "prompts", "--input", "mined.txt", "--output"),
                         ("report", "run", "--orchestrator", "127.0.0.1:1", "--to")):
                if verb[0] == "report" and file.startswith("gone"):
                    continue  # which makes the folder
                self.assertIn(why, self.almost(*verb, file, code=1))
        self.assertTrue((self.path / "pipe").is_fifo())

    def test_what_cannot_be_inspected_is_told(self):
        (self.path / "pairs.json").write_text("[]")
        self.assertIn("pairs.json: must be JSON Lines", self.almost("inspect", "pairs.json", code=1))
        (self.path / "odd.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "turns": [{"candidates": ["x"]}]}\n')
        self.almost("inspect", "odd.jsonl")

    def test_text_that_is_not_utf8_is_named(self):
        for arguments, field in ((("generate", "--model", "m", b"Caf\xe9"), "TEXT"), (("generate", "--model", "m", "--user", b"\xff"), "--user"),
                                 (("generate", "--model", "m", "a", "--stop", b"\xff"), "--stop"),
                                 (("score", "--model", "m", "--prompt", b"\xff", "--response", "a"), "--prompt"),
                                 (("score", "--model", "m", "--prompt", "a", "--response", b"\xff"), "--response")):
            done = subprocess.run([BIN / "almost", *arguments], cwd=self.path, capture_output=True, text=True, timeout=60)
            self.assertEqual((done.returncode, done.stderr), (1, f"almost: {field}: must be UTF-8\n"))

    def test_prompts_have_no_byte_order_mark_and_are_utf8(self):
        (self.path / "mined.txt").write_bytes(b"\xef\xbb\xbfHow do I bake bread at home?\r\n")
        self.almost("data", "prompts", "--input", "mined.txt", "--output", "kept.txt")
        self.assertEqual((self.path / "kept.txt").read_bytes(), b"How do I bake bread at home?\n")
        (self.path / "mined.txt").write_bytes(b"How do I bake bread at home?\nCaf\xe9?\n")
        self.assertIn("mined.txt: line 2 is not UTF-8", self.almost("data", "prompts", "--input", "mined.txt", "--output", "kept.txt", code=1))

    def test_a_stream_shows_one_completion(self):
        self.assertIn("-n", self.almost("generate", "--model", "m", "a", "--stream", "-n", "2", code=1))

    def test_no_proxy_is_asked_for_this_machine(self):
        for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
            environment = {**os.environ, variable: "http://127.0.0.1:2", "no_proxy": "example.org"}
            done = subprocess.run([BIN / "almost", "runs", "list", "--orchestrator", "127.0.0.1:1"], cwd=self.path, env=environment,
                                  capture_output=True, text=True, timeout=60)
            self.assertIn("ipv4:127.0.0.1:1:", done.stderr)

    def test_the_world_is_a_function_of_its_seed(self):
        corpus = self.almost("world", "corpus", "--seed", 7, "--count", 3)
        self.assertEqual([list(json.loads(line)) for line in corpus.splitlines()], [["text"]] * 3)
        self.assertEqual(self.almost("world", "corpus", "--seed", 7, "--first", 1, "--count", 2),
                         "".join(corpus.splitlines(keepends=True)[1:]))
        questions = self.almost("world", "questions", "--seed", 1, "--count", 20).splitlines()
        self.assertEqual(len(questions), 20)
        self.assertNotEqual(questions, self.almost("world", "questions", "--seed", 2, "--count", 20).splitlines())

    def test_doctor_reports_every_part(self):
        done = subprocess.run([BIN / "almost", "--output", "json", "doctor"], cwd=self.path, capture_output=True, text=True,
                              timeout=120)
        findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
        self.assertTrue({"almost", "cpu", "memory", "device", "store", "almost-generation", "orchestrator"} <= findings.keys())
        self.assertEqual(done.returncode, int(any(finding["result"] == "FAIL" for finding in findings.values())))


if __name__ == "__main__":
    unittest.main()
