"""The images: built, looked into, and started as deploy/compose says, on a network of their own."""

import json
import os
import pathlib
import re
import stat
import subprocess
import tempfile
import time
import unittest

from compose_test import OURS, VERSION, load
from suite import SERVICES, SOURCE

IMAGES = (*SERVICES, "cli")
DEPS = pathlib.Path(os.environ["GRPCURL"]).parents[1]
PINNED = dict(re.findall(r"^(\w+)_VERSION=(.*)$", (SOURCE / "deploy/versions.env").read_text(), re.MULTILINE))
# Nothing is asked of cgroups or limits beyond what this process may itself.
PODMAN = ["podman", "--root", str(DEPS / "containers"), "--runroot", "/run/almost-containers", "--runtime", "runc"]
RPCS = {
    "generation": ("almost.generation.v1.GenerationService/ListModels", {}, "models/"),
    "reward": ("almost.reward.v1.RewardService/Score",
               {"model": "models/image-test", "items": [{"prompt": "What is 2 plus 3?", "response": "It is 5."}]}, "raw_score"),
    "simulator": ("almost.simulator.v1.SimulatorService/GeneratePrompts",
                  {"model": {"name": "models/image-test"}, "seeds": ["Where is Tiben?", "What is 1 plus 2?"], "num_shots": 2,
                   "num_attempts": 4, "num_wanted": 4, "take_all_lines": True, "filter": {"preset": "PRESET_WORLD"},
                   "sampling": {"max_new_tokens": 40, "top_p": 0.95}}, "?"),
    "trainer": ("almost.trainer.v1.TrainerService/ListJobs", {}, "STATE_SUCCEEDED"),
    "orchestrator": ("almost.orchestrator.v1.OrchestratorService/GetRun", {"name": "runs/world-smoke"}, "STATE_SUCCEEDED"),
}


# Reflection does not tell it.
HEALTH = """syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"""


def run(*command, timeout=600, check=True, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def podman(*arguments, **options):
    return run(*PODMAN, *arguments, **options)


def image(name):
    return f"localhost/almost/{name}:{VERSION}"


def setUpModule():
    """Builds them, where namespaces may be made. What needs the network, the compiler and the libraries, is kept in ALMOST_DEPS."""
    global settings
    settings = tempfile.NamedTemporaryFile("w", suffix=".conf")
    settings.write("[containers]\ndefault_ulimits = []\n")
    settings.flush()
    os.environ["CONTAINERS_CONF"] = settings.name
    unittest.addModuleCleanup(settings.close)
    for allowed in (run("unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt", check=False),
                    podman("info", check=False)):
        if allowed.returncode != 0:
            raise unittest.SkipTest(f"containers cannot be nested here: {allowed.stderr.strip()}")
    began = time.monotonic()
    for targets in (["tools"], []):
        run(SOURCE / "deploy/images/build", "--bootstrap", "--share", *targets, "--", "--isolation", "chroot", "--network", "host",
            timeout=1500, env={**os.environ, "ENGINE": " ".join(PODMAN), "ALMOST_DEPS": str(DEPS)})
    podman("image", "prune", "--force")
    print(f"built in {time.monotonic() - began:.0f} s")


class Images(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.config, cls.roots = {}, {}
        for name in IMAGES:
            cls.config[name] = json.loads(podman("image", "inspect", image(name)).stdout)[0]
            cls.roots[name] = pathlib.Path(podman("image", "mount", image(name)).stdout.strip())
            cls.addClassCleanup(podman, "image", "unmount", image(name), check=False)
            print(f"{name}: {cls.config[name]['Size'] / 1e6:.0f} MB")

    def files(self, name):
        return [path for path in self.roots[name].rglob("*")]

    def sbom(self, name):
        return json.loads((self.roots[name] / "usr/share/doc/almost/sbom.spdx.json").read_text())

    def packages(self, name, relationship):
        """{package: version} of the SBOM's packages that are so related to the image."""
        sbom = self.sbom(name)
        related = {entry["relatedSpdxElement" if relationship == "CONTAINS" else "spdxElementId"]
                   for entry in sbom["relationships"] if entry["relationshipType"] == relationship}
        return {package["name"]: package["versionInfo"] for package in sbom["packages"] if package["SPDXID"] in related}

    def test_images_without_libtorch_are_small(self):
        for name in ("orchestrator", "simulator", "cli"):
            self.assertLessEqual(self.config[name]["Size"], 150e6, name)
        for name in IMAGES:
            torch = [path for path in self.files(name) if path.name.startswith("libtorch")]
            self.assertEqual(bool(torch), name == "trainer", torch)

    def test_there_is_no_program_but_the_service_and_what_hands_out_models(self):
        programs = {name: {f"almost-{name}", "bash"} for name in SERVICES} | {"cli": {"almost", "bash", "cp"}}
        for name in IMAGES:
            found = {path.name for path in self.files(name) if not path.is_symlink() and path.is_file()
                     and path.stat().st_mode & 0o111 and ".so" not in path.name}
            self.assertEqual(found, programs[name])

    def test_the_user_may_write_to_nothing_but_the_folders_that_volumes_cover(self):
        for name in IMAGES:
            self.assertEqual(self.config[name]["Config"]["User"], "65532:65532")
            writable = set()
            for path in self.files(name):
                status = path.lstat()
                if not stat.S_ISLNK(status.st_mode) and (status.st_uid == 65532 or status.st_mode & stat.S_IWOTH):
                    writable.add(str(path.relative_to(self.roots[name])))
                self.assertFalse(status.st_mode & (stat.S_ISUID | stat.S_ISGID), path)
            self.assertEqual(writable, {"store", "models", "tmp"})

    def test_labels_tell_where_the_image_is_from(self):
        for name in IMAGES:
            labels = self.config[name]["Labels"]
            self.assertEqual(labels["org.opencontainers.image.title"], f"almost-{name}")
            self.assertEqual(labels["org.opencontainers.image.version"], VERSION)
            self.assertEqual(labels["org.opencontainers.image.licenses"], "Apache-2.0")
            self.assertRegex(labels["org.opencontainers.image.revision"], r"^[0-9a-f]{40}(-dirty)?$")
            self.assertIn("org.opencontainers.image.source", labels)

    def test_every_library_is_of_a_package_that_the_sbom_names(self):
        built_with = dict(line.split() for line in podman(
            "run", "--rm", "--network", "none", image("tools"), "dpkg-query", "-W", "-f", "${Package} ${Version}\n").stdout.splitlines())
        for name in IMAGES:
            contained = self.packages(name, "CONTAINS")
            terms = {path.parent.name for path in self.files(name) if path.name == "copyright"}
            self.assertLessEqual(terms, set(contained))
            self.assertLessEqual({"libc6", "libstdc++6", "libgrpc++1.51", "libprotobuf32", "libssl3", "bash"}, terms)
            self.assertEqual({package: contained[package] for package in terms}, {package: built_with[package] for package in terms})
            owned = podman("run", "--rm", "--network", "none", image("tools"), "dpkg", "-L", *terms).stdout.splitlines()
            known = {pathlib.Path(path).name for path in owned}
            unknown = {path.name for path in self.files(name) if ".so" in path.name and "usr/lib/almost" not in str(path)} - known
            self.assertEqual(unknown, set())
            self.assertEqual(contained["googleapis-common-protos"], PINNED["GOOGLEAPIS_COMMON_PROTOS"])
            self.assertEqual(contained.get("tokenizers"), PINNED["TOKENIZERS"] if name not in ("simulator", "orchestrator") else None)
            self.assertEqual(contained.get("torch"), PINNED["LIBTORCH"] if name == "trainer" else None)
            self.assertIn("nlohmann-json3-dev", self.packages(name, "BUILD_DEPENDENCY_OF"))
        self.assertEqual(self.packages("trainer", "CONTAINS")["nvidia-cuda-runtime"], PINNED["CUDA_RUNTIME"])
        self.assertEqual(self.packages("trainer", "CONTAINS")["nvidia-cuda-cupti"], PINNED["CUDA_CUPTI"])


class Containers(unittest.TestCase):
    """All of deploy/compose's containers of ours, in one network namespace without a way out, where every name is 127.0.0.1."""

    @classmethod
    def setUpClass(cls):
        cls.services = load()["services"]
        cls.suffix = f"almost-test-{os.getpid()}"
        cls.addClassCleanup(podman, "volume", "rm", f"store-{cls.suffix}", check=False)
        cls.hosts = tempfile.NamedTemporaryFile("w")
        cls.addClassCleanup(cls.hosts.close)
        cls.hosts.write("".join(f"127.0.0.1 {name}\n" for name in OURS))
        cls.hosts.flush()
        os.chmod(cls.hosts.name, 0o644)
        cls.pids = {}
        for name in OURS:
            cls.start(name, "--detach")
            cls.pids[name] = int(podman("inspect", "--format", "{{.State.Pid}}", f"{name}-{cls.suffix}").stdout)
        deadline = time.monotonic() + 120
        for name in OURS:
            while podman("exec", f"{name}-{cls.suffix}", *cls.health_check(name), check=False).returncode != 0:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{name} is not ready:\n" + podman("logs", f"{name}-{cls.suffix}").stderr[-4000:])
                time.sleep(0.2)
        cls.last = cls.start("run").stdout

    @classmethod
    def health_check(cls, name):
        kind, *command = cls.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return [word.replace("$$", "$") for word in command]

    @classmethod
    def start(cls, name, *arguments):
        """The container as deploy/compose has it."""
        service = cls.services[name]
        container = f"{name}-{cls.suffix}"
        options = [*arguments, "--name", container, "--user", service["user"], "--read-only", "--read-only-tmpfs=false"]
        assert service["read_only"]
        options += [f"--cap-drop={capability}" for capability in service["cap_drop"]]
        options += [f"--security-opt={option.split(':')[0]}" for option in service["security_opt"]]
        options += [f"--tmpfs={path}" for path in service.get("tmpfs") or ()]
        for mount in service.get("volumes") or ():
            source = f"{mount['source']}-{cls.suffix}" if mount["type"] == "volume" else mount["source"]
            options.append(f"--volume={source}:{mount['target']}" + (":ro" if mount.get("read_only") else ""))
        options += ["--network", f"container:{OURS[0]}-{cls.suffix}" if cls.pids else "none", "--no-hosts",
                    f"--volume={cls.hosts.name}:/etc/hosts:ro"]
        entrypoint = json.dumps(service["entrypoint"])
        # Those that share a network go before the one whose network it is.
        cls.addClassCleanup(podman, "rm", "--force", "--time", "0", container, check=False)
        return podman("run", *options, "--entrypoint", entrypoint, image(service["image"].split("/")[1].split(":")[0]),
                      *service["command"])

    def grpcurl(self, name, method, request, *options):
        port = next(flag for flag in self.services[name]["command"] if flag.startswith("--listen=")).rsplit(":", 1)[1]
        return run("nsenter", "--net", "--target", self.pids[name], os.environ["GRPCURL"], "-plaintext", *options, "-d",
                   json.dumps(request), f"127.0.0.1:{port}", method, timeout=60).stdout

    def health_of(self, name, service):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "health.proto").write_text(HEALTH)
            return json.loads(self.grpcurl(name, "grpc.health.v1.Health/Check", {"service": service}, "-import-path", folder,
                                           "-proto", "health.proto"))

    def test_the_suite_runs_a_recipe(self):
        self.assertIn("world-smoke", self.last)

    def test_every_service_answers(self):
        self.grpcurl("generation", "almost.generation.v1.GenerationService/LoadModel",
                     {"name": "models/image-test", "source": "common/world/models/S"})
        listed = self.grpcurl("orchestrator", "almost.orchestrator.v1.OrchestratorService/ListArtifacts", {"run": "runs/world-smoke"})
        [reward_model] = [artifact["name"] for artifact in json.loads(listed)["artifacts"]
                          if (artifact["stage"], artifact["kind"]) == ("reward_model", "model")]
        self.grpcurl("reward", "almost.reward.v1.RewardService/LoadModel", {"name": "models/image-test", "source": reward_model})
        for name, (method, request, answer) in RPCS.items():
            with self.subTest(name):
                self.assertEqual(self.health_of(name, method.split("/")[0]), {"status": "SERVING"})
                self.assertIn(answer, self.grpcurl(name, method, request))

    def test_processes_have_no_rights(self):
        for name in OURS:
            status = pathlib.Path(f"/proc/{self.pids[name]}/status").read_text()
            self.assertRegex(status, r"\nUid:\t65532\t65532\t65532\t65532\n")
            self.assertRegex(status, r"\nCapEff:\t0+\n")
            self.assertRegex(status, r"\nCapBnd:\t0+\n")
            self.assertRegex(status, r"\nNoNewPrivs:\t1\n")

    def test_the_root_is_read_only(self):
        for name in OURS:
            for path in ("/file", "/usr/bin/file", "/var", *(() if self.services[name].get("tmpfs") else ("/tmp/file",))):
                done = podman("exec", f"{name}-{self.suffix}", "bash", "-c", f"echo >{path}", check=False)
                self.assertIn("Read-only file system", done.stderr)

    def test_the_command_line_image_hands_out_the_models_of_the_world(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            podman("run", "--rm", "--network", "none", "--read-only", "--volume", f"{folder}:/models", "--entrypoint", "cp", image("cli"),
                   "-r", "--parents", "common/world/models", "/models")
            for model in ("S", "M", "L"):
                path = f"common/world/models/{model}/model.safetensors"
                self.assertEqual((pathlib.Path(folder) / path).read_bytes(), (SOURCE / path).read_bytes())


if __name__ == "__main__":
    unittest.main()
