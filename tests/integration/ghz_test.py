"""ghz, the load generator of gRPC, calls every service, eight calls at a time; it learns the messages by reflection."""

import json
import os
import subprocess
import unittest

from suite import SMOKE, Suite

QUESTION = "What is 2 plus 3?"
SAMPLING = {"seed": 7, "top_p": 0.95, "max_new_tokens": 20, "stop": ["\n"]}
CALLS = {
    "generation": ("GenerationService/Generate",
                   {"model": "models/ghz", "sampling": SAMPLING,
                    "items": [{"input": {"messages": {"messages": [{"role": "user", "content": QUESTION}]}}}]}),
    "reward": ("RewardService/Score", {"model": "models/ghz", "items": [{"prompt": QUESTION, "response": "It is 5."}]}),
    "simulator": ("SimulatorService/GeneratePrompts",
                  {"model": {"name": "models/ghz"}, "seeds": ["Where is Tiben?", QUESTION], "num_shots": 2, "num_attempts": 2,
                   "num_wanted": 2, "sampling": SAMPLING, "filter": {"preset": "PRESET_WORLD"}}),
    "trainer": ("TrainerService/ListJobs", {}),
    "orchestrator": ("OrchestratorService/GetRun", {"name": "runs/ghz"}),
    "judge": ("JudgeService/Compare", {"items": [{"prompt": QUESTION, "a": "It is 5.", "b": "It is 4."}]}),
}


class Ghz(unittest.TestCase):
    def call(self, suite, service, method, data, number, at_a_time):
        """What ghz reports of them."""
        done = subprocess.run([os.environ["GHZ"], "--insecure", "--call", f"almost.{service}.v1.{method}", "--data", json.dumps(data),
                               "--total", str(number), "--concurrency", str(at_a_time), "--format", "json",
                               suite.services()[service]["address"]], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_every_service(self):
        with Suite() as suite:
            (reward_model,) = (name for stage, kind, name in suite.run(SMOKE, "ghz") if (stage, kind) == ("reward_model", "model"))
            for service, source in ("generation", "common/world/models/S"), ("reward", reward_model):
                load = self.call(suite, service, f"{service.capitalize()}Service/LoadModel",
                                 {"name": "models/ghz", "source": source}, 1, 1)
                self.assertEqual(load["statusCodeDistribution"], {"OK": 1}, load)
            for service, (method, data) in CALLS.items():
                with self.subTest(service):
                    report = self.call(suite, service, method, data, 64, 8)
                    self.assertEqual(report["statusCodeDistribution"], {"OK": 64}, report["errorDistribution"])
                    print(f"{service}: {report['rps']:.0f} calls a second, mean {report['average'] / 1e6:.1f} ms")

    def test_calls_that_fail_are_reported_as_such(self):
        with Suite() as suite:
            report = self.call(suite, "reward", *CALLS["reward"], 8, 2)
        self.assertEqual(report["statusCodeDistribution"], {"NotFound": 8})


if __name__ == "__main__":
    unittest.main()
