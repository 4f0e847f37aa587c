"""Artifacts in S3, on a real server (versitygw): the store's own tests, and world-smoke while connections to it break.

The run must end with the artifacts of one whose store is a folder, and services that come up with nothing fetch by digest.
"""

import contextlib
import functools
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

from ports import free_port
from suite import BIN, SMOKE, SOURCE, Suite

sys.path.insert(0, str(SOURCE / "tests/robustness"))
from faulting_proxy import FaultingProxy

KEY, SECRET = "test-key", "test-secret"


def make_bucket(endpoint, name):
    """PUT /name, signed (AWS Signature Version 4)."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {"host": endpoint.removeprefix("http://"), "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(),
               "x-amz-date": date}
    signed = ";".join(headers)
    canonical = "\n".join(["PUT", f"/{name}", "", *(f"{k}:{v}" for k, v in headers.items()), "", signed,
                           headers["x-amz-content-sha256"]])
    scope = f"{date[:8]}/us-east-1/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + SECRET).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    headers["Authorization"] = (f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={signed}, "
                                f"Signature={hmac.new(key, to_sign.encode(), 'sha256').hexdigest()}")
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT", headers=headers), timeout=5)


@contextlib.contextmanager
def server(folder):
    """A running versitygw that keeps its objects beneath `folder`, with a bucket "bucket"; yields its address."""
    for name in ("objects", "log"):
        (folder / name).mkdir()
    address = f"127.0.0.1:{free_port()}"
    with open(folder / "log/versitygw.log", "wb") as log:
        process = subprocess.Popen([os.environ["VERSITYGW"], "--access", KEY, "--secret", SECRET, "--port", address,
                                    "posix", folder / "objects"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                make_bucket(f"http://{address}", "bucket")
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((folder / "log/versitygw.log").read_text()) from None
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


@functools.cache
def on_a_folder():
    """The smoke run's artifacts where they are kept in a folder."""
    with Suite() as suite:
        return suite.run(SMOKE, "run")


class S3(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="almost-s3-")))
        self.server = self.enterContext(server(self.folder))
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                       "AWS_ENDPOINT_URL": f"http://{self.server}"}

    def behind_a_proxy(self):
        """What suites that start from now on reach the server through."""
        proxy = FaultingProxy()
        self.addCleanup(proxy.close)
        host, port = self.server.split(":")
        proxy.target = (host, int(port))
        os.environ["AWS_ENDPOINT_URL"] = f"http://{proxy.address}"
        return proxy

    def test_the_store(self):
        subprocess.run([BIN / "s3_store_test"], check=True)

    def test_world_smoke_ends_as_it_does_on_a_folder(self):
        wanted = on_a_folder()
        proxy = self.behind_a_proxy()
        store = self.folder / "store"
        up = ("--artifacts", "s3://bucket/a/prefix")
        with Suite(store=store, up=up) as suite:
            suite.almost("run", SMOKE, "--id", "run")
            ended = threading.Event()

            def cut():
                while not ended.wait(0.2):
                    proxy.cut()
            cutter = threading.Thread(target=cut)
            cutter.start()
            try:
                self.assertEqual(suite.follow("run"), wanted)
            finally:
                ended.set()
                cutter.join()
            self.assertFalse((store / "objects").exists(), "artifacts in the suite's own folder")
            self.assertTrue((store / "cache/objects").is_dir())
            suite.almost("report", "run", "--to", self.folder / "s3.html")
        self.assertIn("<html", (self.folder / "s3.html").read_text())

        # Nothing here but the journal: all else comes from S3, and what trains and serves next begins from it.
        shutil.rmtree(store / "cache")
        with Suite(store=store, up=up) as suite:
            self.assertEqual(suite.hashes("run"), wanted)
            policy = next(name for stage, kind, name in wanted if (stage, kind) == ("rl", "model"))
            suite.almost("artifacts", "get", "run", policy, "--to", self.folder / "policy")
            self.assertTrue((self.folder / "policy/model.safetensors").is_file())
            suite.almost("generate", "--model", policy, "--user", "What is 1 plus 2?")
            scorer = next(name for stage, kind, name in wanted if (stage, kind) == ("reward_model", "model"))
            suite.almost("score", "--model", scorer, "--prompt", "What is 1 plus 2?", "--response", "It is 3.")

    def test_a_run_pauses_while_s3_is_away_and_goes_on_by_itself(self):
        """Twice for longer than every try of a request: when a stage wants to publish, and in the middle of a training job."""
        wanted = on_a_folder()
        proxy = self.behind_a_proxy()
        store = self.folder / "store"
        with Suite(store=store, up=("--artifacts", "s3://bucket/away")) as suite:
            proxy.go_down()
            suite.almost("run", SMOKE, "--id", "run")
            run = suite.wait_for("run", "RUN_STATE_PAUSED", "RUN_STATE_FAILED", timeout=120)
            self.assertEqual(run["state"], "RUN_STATE_PAUSED", run)
            self.assertIn("S3", run["error"]["message"])
            proxy.heal()
            while not (jobs := list(store.glob("jobs/run-*/state.json"))):
                time.sleep(0.01)
            proxy.go_down()
            while "job waits for the store" not in suite.log.read_text():
                self.assertNotIn(json.loads(jobs[0].read_text())["state"], ("succeeded", "failed"))
                time.sleep(0.1)
            proxy.heal()
            self.assertEqual(suite.follow("run"), wanted)
            self.assertEqual({path.parent.name.rsplit("-", 1)[1] for path in store.glob("jobs/run-*/state.json")}, {"0"},
                             "each stage had one job")


if __name__ == "__main__":
    unittest.main()
