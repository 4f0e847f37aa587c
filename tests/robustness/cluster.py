"""The services of one machine as the campaign runs them: each under a plan of faults, and reached through a proxy.

`almost up` would do, were it not that a proxy has to stand between any two services and a plan beneath each of them.
"""

import contextlib
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from faulting_proxy import FaultingProxy
from ports import free_port
from suite import BIN, SOURCE, Failed, Suite

FAULTS = pathlib.Path(os.environ["ALMOST_BINARY_DIR"]) / "bin/libfaulting_system.so"
# Binary and what it needs to be told; reward runs twice.
CALLS = {"generation": (), "reward": (), "reward-2": (), "judge": (), "simulator": ("generation", "reward"),
         "trainer": (), "orchestrator": ("generation", "reward", "simulator", "trainer")}
ACTIONS = {"none": 0, "die": 1, "die_torn": 2, "full": 3, "broken": 4}


class Plan:
    """What the operating system does to one service, shared with it (see faulting_system.cc)."""

    FIELDS = ("operations", "first", "last", "action", "num_met", "clock_offset_ns")

    def __init__(self, path, root):
        self.path = path
        path.write_bytes(struct.pack("<6q976s", 0, 0, -1, 0, 0, 0, f"{root}/".encode()))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 1024)

    def __getattr__(self, field):
        return struct.unpack_from("<q", self._map, 8 * self.FIELDS.index(field))[0]

    def set(self, field, value):
        struct.pack_into("<q", self._map, 8 * self.FIELDS.index(field), value)

    def meet(self, action, first, last):
        """The operations numbered so, over all restarts, meet `action`."""
        self.set("action", ACTIONS["none"])
        self.set("first", first)
        self.set("last", last)
        self.set("action", ACTIONS[action])

    def heal(self):
        self.set("action", ACTIONS["none"])


class Cluster(Suite):
    """with Cluster() as cluster: every service is ready. One that dies is started again, however it died."""

    RESTART_AFTER = 0.1  # seconds

    def __enter__(self):
        if not FAULTS.exists():  # the loader would only warn
            raise Failed(f"{FAULTS} is not built")
        self.store.mkdir(parents=True)
        self.model_root = self.store.parent / "models"  # its own, so that a test can put others beside them
        for model in ("S", "M"):
            shutil.copytree(SOURCE / "common/world/models" / model, self.model_root / "common/world/models" / model)
        self.proxies = {service: FaultingProxy() for service in CALLS}
        self.plans = {service: Plan(self.store.parent / f"{service}.plan", self.store) for service in CALLS}
        self._metrics = {service: free_port() for service in CALLS}
        for proxy in self.proxies.values():
            proxy.target = ("127.0.0.1", free_port())
        self._processes = {}
        self._stopping = threading.Event()
        self._log = open(self.log, "wb")
        self._supervisor = threading.Thread(target=self._supervise)
        self._supervisor.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, error, trace):
        self.heal()
        self._stopping.set()
        self._supervisor.join()
        for proxy in self.proxies.values():
            proxy.close()
        self._log.close()
        if kind is not None:
            print("---- last lines of the services ----", self.tail(), sep="\n")
        self._folder.cleanup()

    def tail(self, lines=60):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def services(self):
        return {service: {"address": proxy.address, "metrics": f"127.0.0.1:{self._metrics[service]}"}
                for service, proxy in self.proxies.items()}

    def pid(self, service):
        """0 while it has none."""
        process = self._processes.get(service)
        return process.pid if process and process.poll() is None else 0

    def signal(self, service, number):
        if pid := self.pid(service):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def restart(self, service, timeout=60):
        """Stops it in order; returns when all services are ready again."""
        before, deadline = self.pid(service), time.monotonic() + timeout
        self.signal(service, signal.SIGTERM)
        while self.pid(service) in (0, before):
            if time.monotonic() > deadline:
                raise Failed(f"{service} has not stopped within {timeout} seconds")
            time.sleep(0.02)
        self.wait_until_ready(timeout)

    def wait_until_ready(self, timeout=60):
        deadline = time.monotonic() + timeout
        for service in CALLS:
            while not self.is_ready(service):
                if time.monotonic() > deadline:
                    raise Failed(f"{service} is not ready after {timeout} seconds")
                time.sleep(0.02)

    def heal(self):
        """The world is in order again."""
        for service in CALLS:
            self.plans[service].heal()
            self.proxies[service].heal()
            self.signal(service, signal.SIGCONT)

    def _command(self, service):
        def through(*names):
            return ",".join(self.proxies[name].address for name in names)

        name = service.removesuffix("-2")
        command = [BIN / "almost", "world", "judge"] if name == "judge" else [BIN / f"almost-{name}"]
        command += ["--listen=%s:%d" % self.proxies[service].target, f"--metrics_listen=127.0.0.1:{self._metrics[service]}"]
        if name in ("generation", "reward", "trainer"):
            command += [f"--store={self.store}", f"--model_root={self.model_root}"]
        if name == "orchestrator":
            command += [f"--store={self.store}", "--pause_after_seconds=2"]
        for callee in CALLS[service]:
            command.append(f"--{callee}=" + through(*(each for each in CALLS if each.removesuffix("-2") == callee)))
        return command

    def _start(self, service):
        environment = os.environ | {"LD_PRELOAD": str(FAULTS), "ALMOST_FAULTS": str(self.plans[service].path)}
        return subprocess.Popen(self._command(service), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL,
                                env=environment)

    def _supervise(self):
        """All its life one thread: a service dies with the thread that started it."""
        up = {"pid": os.getpid(), "services": {service: each | {"pid": 0} for service, each in self.services().items()}}
        (self.store / "up.json").write_text(json.dumps(up))
        restart = dict.fromkeys(CALLS, 0.0)
        while not self._stopping.is_set():
            for service in CALLS:
                process = self._processes.get(service)
                if process is not None and process.poll() is not None:
                    del self._processes[service]
                    restart[service] = time.monotonic() + self.RESTART_AFTER
                if service not in self._processes and time.monotonic() >= restart[service]:
                    self._processes[service] = self._start(service)
            self._stopping.wait(0.02)
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
