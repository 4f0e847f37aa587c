"""A running suite for tests: all services under `almost up` on free ports, with a store of its own.

Python's standard library and the binaries are all it takes: what these tests do is start, kill and watch processes and
compare JSON, and going through `almost` they test the command line too.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request

SOURCE = pathlib.Path(os.environ["ALMOST_SOURCE_DIR"])
BIN = pathlib.Path(os.environ["ALMOST_BINARY_DIR"]) / "bin"
SMOKE = SOURCE / "deploy/recipes/world-smoke.yaml"
SERVICES = ("generation", "reward", "simulator", "trainer", "orchestrator")
STAGES = ("prompts", "responses", "comparisons", "reward_model", "demonstrations", "sft", "rl", "evaluation", "report")


class Failed(Exception):
    """A command of `almost` that ended with an error; str() is what it printed."""


class Suite:
    """with Suite() as suite: the services are up and ready; leaving it stops them and removes the store."""

    def __init__(self, model_root=SOURCE, store=None, up=(), judge="tiny"):
        self._folder = tempfile.TemporaryDirectory(prefix="almost-test-")
        self.store = pathlib.Path(store or self._folder.name + "/store")
        self.log = pathlib.Path(self._folder.name) / "up.log"
        self.model_root = model_root
        self._more = (f"--world_judge={judge}", *up)  # flags of `almost up`

    def __enter__(self):
        with open(self.log, "wb") as log:
            self._up = subprocess.Popen([BIN / "almost", "up", "--store", self.store, "--model_root", self.model_root,
                                         "--ports", "auto", *self._more], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not (self.store / "up.json").exists():
            if self._up.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise Failed(self.log.read_text(errors="replace")[-4000:])
            time.sleep(0.05)
        return self

    def __exit__(self, kind, error, trace):
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
        try:
            self._up.wait(60)
        finally:
            self._up.kill()
            if kind is not None:
                print("---- last lines of the services ----")
                print("\n".join(self.log.read_text(errors="replace").splitlines()[-40:]))
            self._folder.cleanup()

    def command(self, *arguments):
        return [str(BIN / "almost"), "--store", str(self.store), *map(str, arguments)]

    def almost(self, *arguments, timeout=300):
        """The standard output of `almost arguments…`."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise Failed(done.stderr + done.stdout)
        return done.stdout

    def json(self, *arguments):
        return json.loads(self.almost("--output", "json", *arguments))

    def services(self):
        """{service: {address, metrics, pid}}; the pid is that of the last start."""
        return json.loads((self.store / "up.json").read_text())["services"]

    def is_ready(self, service):
        try:
            with urllib.request.urlopen(f"http://{self.services()[service]['metrics']}/readyz", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    def run(self, recipe, run_id, *arguments, timeout=600):
        """Runs a recipe to its end; returns its artifacts' digests by stage and kind.

        Raises Failed when the run does not succeed.
        """
        self.almost("run", recipe, "--id", run_id, *arguments)
        return self.follow(run_id, timeout)

    def follow(self, run_id, timeout=600):
        """As run(), of a run that is there."""
        try:
            self.almost("runs", "watch", run_id, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"run {run_id} still goes on after {timeout} seconds") from None
        return self.hashes(run_id)

    def wait_for(self, run_id, *states, timeout=60):
        """The run as `runs show` has it, once it is in one of the states."""
        deadline = time.monotonic() + timeout
        while (run := self.json("runs", "show", run_id))["state"] not in states:
            if time.monotonic() > deadline:
                raise Failed(f"run {run_id} is {run['state']} after {timeout} seconds, not one of {states}")
            time.sleep(0.1)
        return run

    def hashes(self, run_id):
        artifacts = self.json("artifacts", "ls", run_id)["artifacts"]
        return sorted((artifact["stage"], artifact["kind"], artifact["name"]) for artifact in artifacts)
