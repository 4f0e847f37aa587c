"""Scorers that come and go while a run and a client use them, behind one DNS name whose addresses change.

Everything runs in a network of its own, where dnsmasq is the name server: 127.0.0.11 and up are the scorers' addresses.
The callers are those that users have: the trainer and the simulator with our pool, the Python client with its service
config, and the orchestrator, which brings the models to a new scorer.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

from python_client import install
from suite import BIN, SMOKE, SOURCE

NAME = "scorers.test"
TARGET = f"dns:///{NAME}:50052"
PORTS = {"generation": (50051, 9451), "simulator": (50053, 9453), "trainer": (50054, 9454), "orchestrator": (50055, 9455),
         "judge": (50056, 9456)}

# Scores for as long as its input is open; then says how it went. One failed call ends it.
CLIENT = """
import asyncio, sys
from almost import aio, results

async def main():
    stop, calls = asyncio.Event(), 0
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    pairs = [("What is 2 plus 3?", f"2 plus 3 is {n}.") for n in range(8)]
    async def score(client):
        nonlocal calls
        expected = None
        while not stop.is_set():
            scores = [result.score for result in results(await client.score("models/served", pairs))]
            assert scores == (expected := expected or scores), (scores, expected)
            calls += 1
            await asyncio.sleep(0.02)
    async with aio.Reward(sys.argv[1]) as client:
        await asyncio.gather(*(score(client) for _ in range(4)))
    print(calls)

asyncio.run(main())
"""


def own_network():
    """Starts this test again in a network and with a resolv.conf of its own."""
    if os.environ.get("ALMOST_OWN_NETWORK"):
        return
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    # A copy of /etc over /etc, since resolv.conf may be a link to where nothing is.
    script = ("set -e; ip link set lo up; mkdir \"$0/etc\"; cp -a /etc/. \"$0/etc\" 2>/dev/null || true;"
              "rm -f \"$0/etc/resolv.conf\" \"$0/etc/nsswitch.conf\"; echo nameserver 127.0.0.1 >\"$0/etc/resolv.conf\";"
              "echo hosts: files dns >\"$0/etc/nsswitch.conf\"; mount --bind \"$0/etc\" /etc; exec \"$@\"")
    with tempfile.TemporaryDirectory(prefix="almost-test-") as folder:
        sys.exit(subprocess.run(["unshare", *user, "--mount", "--net", "sh", "-c", script, folder, sys.executable, "-B",
                                 __file__], env={**os.environ, "ALMOST_OWN_NETWORK": "1"}).returncode)


def metric(address, pattern):
    """Sum of the series that match."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(pattern, line))


def wait(what, done, seconds):
    """How long it took until done() was true."""
    start = time.monotonic()
    while not done():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"{what}: not after {seconds} seconds")
        time.sleep(0.1)
    return time.monotonic() - start


class Scaling(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="almost-test-")))
        self.store = self.folder / "store"
        self.store.mkdir()
        self.processes = {}
        self.addCleanup(self.stop_all)
        self.hosts = self.folder / "hosts"
        self.hosts.write_text("")
        self.spawn("dnsmasq", "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", "--pid-file",
                   "--local-ttl=1", f"--addn-hosts={self.hosts}", "--listen-address=127.0.0.1", "--bind-interfaces",
                   "--log-facility=-")

    def spawn(self, name, *command):
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop_all(self):
        for name in reversed(self.processes):
            self.processes[name].terminate()
        for process in self.processes.values():
            process.wait(60)

    def start(self, name, host, ports, *arguments):
        command = [BIN / "almost", "world", "judge"] if name == "judge" else [BIN / f"almost-{name.split('@')[0]}"]
        self.spawn(name, *command, f"--listen={host}:{ports[0]}", f"--metrics_listen={host}:{ports[1]}", *arguments)

        def ready():
            self.assertIsNone(self.processes[name].poll(), (self.folder / f"{name}.log").read_text())
            try:
                return urllib.request.urlopen(f"http://{host}:{ports[1]}/readyz", timeout=10).status == 200
            except OSError:
                return False

        wait(f"{name} is ready", ready, 60)

    def start_scorer(self, n, *arguments):
        # Connections live for seconds, so that a client's balancer looks the name up again and finds the new scorer.
        self.start(f"reward@{n}", f"127.0.0.{10 + n}", (50052, 9452), f"--store={self.store}", f"--model_root={SOURCE}",
                   "--max_connection_age_seconds=3", "--drain_seconds=20", *arguments)

    def set_addresses(self, *scorers):
        self.hosts.write_text("".join(f"127.0.0.{10 + n} {NAME}\n" for n in scorers))
        self.processes["dnsmasq"].send_signal(signal.SIGHUP)

    def almost(self, *arguments):
        return subprocess.run([BIN / "almost", "--store", self.store, "--orchestrator", "127.0.0.1:50055", "--output", "json",
                               *arguments], check=True, capture_output=True, text=True, timeout=120).stdout

    def run_of(self, run_id):
        return json.loads(self.almost("runs", "show", run_id))

    def scored(self, n):
        return metric(f"127.0.0.{10 + n}:9452", 'grpc_server_handled_total{.*"OK".*"Score"|grpc_server_handled_total{.*"Score".*"OK"')

    def test_one_three_one(self):
        python = install(self.folder)
        store, root = f"--store={self.store}", f"--model_root={SOURCE}"
        local = {name: f"127.0.0.1:{ports[0]}" for name, ports in PORTS.items()}
        self.start_scorer(1)
        self.set_addresses(1)
        self.start("generation", "127.0.0.1", PORTS["generation"], store, root)
        self.start("judge", "127.0.0.1", PORTS["judge"])
        self.start("simulator", "127.0.0.1", PORTS["simulator"], f"--generation={local['generation']}", f"--reward={TARGET}")
        self.start("trainer", "127.0.0.1", PORTS["trainer"], store, root)
        self.start("orchestrator", "127.0.0.1", PORTS["orchestrator"], store, f"--reward={TARGET}",
                   *(f"--{name}={local[name]}" for name in ("generation", "simulator", "trainer")))
        self.almost("run", SMOKE, "--id", "first", "--judge", local["judge"])
        wait("the first run", lambda: self.run_of("first")["state"] != "RUN_STATE_RUNNING", 120)
        self.assertEqual(self.run_of("first")["state"], "RUN_STATE_SUCCEEDED")
        artifacts = json.loads(self.almost("artifacts", "ls", "first"))["artifacts"]
        rm = next(each["name"] for each in artifacts if (each["stage"], each["kind"]) == ("reward_model", "model"))

        # The client's own model, which no run keeps: a new scorer has it before it says that it is ready.
        subprocess.run([python, "-c", "import sys, almost; almost.Reward(sys.argv[1]).load_model('models/served', sys.argv[2])",
                        TARGET, rm], check=True, timeout=60)
        client = subprocess.Popen([python, "-c", CLIENT, TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(client.kill)
        recipe = self.folder / "recipe.yaml"
        text = SMOKE.read_text().replace("../../", f"{SOURCE}/").replace("num_iterations: 3", "num_iterations: 600")
        recipe.write_text(text.replace("seed: 1", "seed: 2"))
        self.almost("run", recipe, "--id", "second", "--judge", local["judge"])

        def in_rl():
            run = self.run_of("second")
            self.assertEqual(run["state"], "RUN_STATE_RUNNING", run)
            return any(stage["id"] == "rl" and int(stage["items_done"]) > 0 for stage in run["stages"])

        wait("the second run is in RL", in_rl, 120)
        for n in (2, 3):
            self.start_scorer(n, f"--load=served={rm}")
        before = {n: self.scored(n) for n in (1, 2, 3)}
        self.set_addresses(1, 2, 3)

        def even():
            nonlocal before
            time.sleep(2)
            now = {n: self.scored(n) for n in (1, 2, 3)}
            calls, before = [now[n] - before[n] for n in now], now
            return sum(calls) >= 30 and min(calls) >= 0.2 * sum(calls)

        evened = wait("calls spread over three scorers", even, 30)
        trained = {n: metric(f"127.0.0.{10 + n}:9452", "almost_reward_items_total.*scored") for n in (2, 3)}

        leaving = {}
        self.set_addresses(1)
        for n in (3, 2):
            process, start = self.processes.pop(f"reward@{n}"), time.monotonic()
            process.terminate()
            self.assertEqual(process.wait(30), 0)
            leaving[n] = time.monotonic() - start
        self.assertTrue(in_rl())
        before = self.scored(1)
        wait("the last scorer has all calls", lambda: self.scored(1) > before + 30, 30)

        wait("the second run", lambda: self.run_of("second")["state"] != "RUN_STATE_RUNNING", 240)
        run = self.run_of("second")
        self.assertEqual(run["state"], "RUN_STATE_SUCCEEDED", run)
        calls, _ = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 0)
        self.assertEqual(metric("127.0.0.1:9455", 'almost_orchestrator_items_total{.*outcome="error"'), 0)
        tries = {code: metric("127.0.0.1:9454", f'grpc_client_handled_total{{.*grpc_code="{code}".*Score')
                 for code in ("OK", "NOT_FOUND", "UNAVAILABLE")}
        print(f"evened out {evened:.1f} s after the name had three addresses; scored by the newcomers {trained}; left within "
              f"{ {n: round(s, 1) for n, s in leaving.items()} } s; the client made {calls.strip()} calls, none failed; "
              f"tries of the trainer {tries}")


if __name__ == "__main__":
    own_network()
    unittest.main()
