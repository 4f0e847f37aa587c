"""k8s/ as kustomize renders it, against Kubernetes' schemas, against itself, and against the binaries.

Every overlay and every combination of components is rendered; each check below holds for each of them.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
from ports import free_port  # noqa: E402

K8S = ROOT / "k8s"
MONITORING = ROOT / "deploy/monitoring"
BIN = pathlib.Path(os.environ["ALMOST_BINARY_DIR"]) / "bin"
TOOLS = pathlib.Path(os.environ["TOOLS"])  # deploy/setup --full
SERVICES = ("generation", "reward", "simulator", "trainer", "orchestrator")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
TURN_AWAY_SECONDS = 0.5  # common/rpc/server.cc: NOT_SERVING before the drain


def kustomize(folder):
    return subprocess.run([TOOLS / "kustomize", "build", str(folder)], check=True, capture_output=True, text=True).stdout


def rendered_with(base, components):
    with tempfile.TemporaryDirectory() as folder:
        def relative(path):
            return os.path.relpath(path, os.path.realpath(folder))
        (pathlib.Path(folder) / "kustomization.yaml").write_text(json.dumps({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [relative(base)],
            "components": [relative(K8S / "components" / name) for name in components]}))
        return kustomize(folder)


def listed_in(overlay, component):
    """The overlay with one more component in its own list: unlike one added to it from outside, its patches come after that."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(K8S, folder, dirs_exist_ok=True)
        path = pathlib.Path(folder) / "overlays" / overlay / "kustomization.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["components"].append(f"../../components/{component}")
        path.write_text(json.dumps(settings))
        return kustomize(path.parent)


@functools.lru_cache(None)
def renderings():
    """{name: YAML}: the overlays and the Job as they are, base with every combination of components, dev and prod with some."""
    found = {str(path.parent.relative_to(K8S)): kustomize(path.parent)
             for path in sorted([*K8S.glob("overlays/*/kustomization.yaml"), K8S / "run/kustomization.yaml"])}
    components = sorted(path.name for path in (K8S / "components").iterdir())
    for size in range(len(components) + 1):
        for chosen in itertools.combinations(components, size):
            if not {"hpa", "keda"} <= set(chosen):  # two autoscalers of one Deployment fight
                found["+".join(["base", *chosen])] = rendered_with(K8S / "base", chosen)
    for name in ("hpa", "keda", "service-monitors"):
        found[f"dev+{name}"] = rendered_with(K8S / "overlays/dev", [name])
    for name in ("gpu", "training-nodes"):
        found[f"prod with {name} in its list"] = listed_in("prod", name)
        found[f"prod+{name}"] = rendered_with(K8S / "overlays/prod", [name])
    return found


def printed_rules():
    return subprocess.run([MONITORING / "print_prometheus_rules"], check=True, capture_output=True, text=True).stdout


def shown(name):
    """The README's YAML of that name."""
    return re.search(rf"^```yaml\n# {re.escape(name)}\n(.*?)^```", (K8S / "README.md").read_text(), re.MULTILINE | re.DOTALL).group(1)


def kustomize_shown(name, folder):
    """What the README's kustomization of that name makes in the folder."""
    text, count = re.subn("path/to/almost", os.path.relpath(ROOT, os.path.realpath(folder)), shown(name))
    assert count == 1, text
    (pathlib.Path(folder) / "kustomization.yaml").write_text(text)
    return [doc for doc in yaml.safe_load_all(kustomize(folder)) if doc]


@functools.lru_cache(None)
def parsed():
    return {name: [doc for doc in yaml.safe_load_all(text) if doc] for name, text in renderings().items()}


def named(doc):
    return f"{doc['kind']}/{doc['metadata']['name']}"


def of_kind(docs, *kinds):
    return [doc for doc in docs if doc["kind"] in kinds]


def template(workload):
    return workload["spec"]["template"]


def pod(workload):
    return template(workload)["spec"]


def containers(workload):
    return pod(workload)["containers"] + pod(workload).get("initContainers", [])


def flags(container):
    """{flag: value}; a flag given twice is an error of the manifest, as it is one of the binaries."""
    found = {}
    for argument in container.get("args", []):
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
            assert flag not in found, f"{flag} is given twice"
            found[flag] = value
    return found


def ports(workload):
    return {port["name"]: port["containerPort"] for port in pod(workload)["containers"][0].get("ports", [])}


def labels_of_pods(workload):
    """Of an Indexed Job those of index 0, which the Job controller labels."""
    index = {"batch.kubernetes.io/job-completion-index": "0"} if workload["spec"].get("completionMode") == "Indexed" else {}
    return {**template(workload)["metadata"]["labels"], **index}


def matches(selector, labels):
    return selector.items() <= labels.items()


@functools.lru_cache(None)
def offered(command):
    """The flags of `command --help`, those of the verbs' common part included."""
    found = set()
    for verb in range(1, len(command) + 1):
        text = subprocess.run([BIN / command[0], *command[1:verb], "--help"], check=True, capture_output=True, text=True).stdout
        for line in re.findall(r"^  (-\S+)", text, re.MULTILINE):
            found.update(re.findall(r"--[\w-]+", line))
    return found


@functools.lru_cache(None)
def health_names():
    """Full names of the services in proto/, under which each server answers for its health."""
    found = set()
    for path in (ROOT / "proto").rglob("*.proto"):
        text = path.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        found.update(f"{package.group(1)}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE))
    return found


class Manifests(unittest.TestCase):
    maxDiff = None

    def every(self, *kinds):
        """(rendering's documents, document) of all renderings, as subtests."""
        for name, docs in parsed().items():
            for doc in of_kind(docs, *kinds) if kinds else docs:
                with self.subTest(rendering=name, object=named(doc)):
                    yield docs, doc

    def workloads_matching(self, docs, selector):
        # The Job of k8s/run is applied beside whatever runs.
        everything = of_kind(docs + parsed()["run"], *WORKLOADS)
        return [workload for workload in everything if matches(selector, labels_of_pods(workload))]

    def servers(self):
        """As every(): what listens, however it is run."""
        for docs, workload in self.every(*WORKLOADS):
            if ports(workload):
                yield docs, workload

    def test_the_schemas_of_kubernetes_and_of_the_operators_accept_them(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in renderings().items():
                (pathlib.Path(folder) / f"{name.replace('/', '-')}.yaml").write_text(text)
            (pathlib.Path(folder) / "loader.yaml").write_text(shown("loader.yaml"))
            (pathlib.Path(folder) / "dashboards.yaml").write_text(kustomize(MONITORING))
            (pathlib.Path(folder) / "rules.yaml").write_text(printed_rules())
            done = subprocess.run([TOOLS / "kubectl-validate", folder, "--version", "1.30", "--local-crds", os.environ["CRDS"]],
                                  capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_monitoring_brings_every_dashboard_and_every_rule(self):
        found = {}
        for doc in yaml.safe_load_all(kustomize(MONITORING)):
            self.assertEqual((doc["kind"], doc["metadata"]["labels"]["grafana_dashboard"]), ("ConfigMap", "1"))
            found |= doc["data"]
        self.assertEqual(found, {f"almost-{path.name}": path.read_text() for path in MONITORING.glob("dashboards/*.json")})
        rules = [doc["spec"] for doc in yaml.safe_load_all(printed_rules())]
        self.assertEqual(rules, [yaml.safe_load((MONITORING / f"{name}.yaml").read_text()) for name in ("rules", "alerts")])

    def test_every_selector_finds_what_it_is_for(self):
        for docs, doc in self.every():
            spec = doc.get("spec", {})
            if doc["kind"] in ("Deployment", "StatefulSet"):
                labels = template(doc)["metadata"]["labels"]
                self.assertTrue(matches(spec["selector"]["matchLabels"], labels))
                for spread in pod(doc).get("topologySpreadConstraints", []):
                    self.assertTrue(matches(spread["labelSelector"]["matchLabels"], labels))
                for other in of_kind(docs, *WORKLOADS):
                    self.assertTrue(other is doc or
                                    not matches(spec["selector"]["matchLabels"], template(other)["metadata"]["labels"]), named(other))
            elif doc["kind"] == "Service":
                (workload,) = self.workloads_matching(docs, spec["selector"])
                offered_ports = {port["name"]: port["port"] for port in spec["ports"]}
                if doc["metadata"]["name"] == pod(workload).get("subdomain"):
                    self.assertEqual(offered_ports, {"rendezvous": ports(workload)["rendezvous"]})
                else:
                    self.assertEqual(offered_ports, {name: port for name, port in ports(workload).items() if name != "rendezvous"})
                self.assertTrue(all(port["targetPort"] == port["name"] for port in spec["ports"]))
            elif doc["kind"] == "PodDisruptionBudget":
                self.assertEqual(len(self.workloads_matching(docs, spec["selector"]["matchLabels"])), 1)
            elif doc["kind"] == "ServiceMonitor":
                found = [s for s in of_kind(docs, "Service") if matches(spec["selector"]["matchLabels"], s["metadata"]["labels"])]
                self.assertEqual(found, [s for s in of_kind(docs, "Service") if s["metadata"]["name"] != "trainer-ranks"])
                for service in found:
                    self.assertIn("metrics", [port["name"] for port in service["spec"]["ports"]])
            elif doc["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
                (target,) = [d for d in of_kind(docs, spec["scaleTargetRef"]["kind"])
                             if d["metadata"]["name"] == spec["scaleTargetRef"]["name"]]
                self.assertNotIn("replicas", target["spec"], "each apply would set back what the autoscaler did")

    def test_what_a_pod_names_is_there(self):
        for docs, workload in self.every(*WORKLOADS):
            names = {named(doc) for doc in docs}
            self.assertIn(f"ServiceAccount/{pod(workload)['serviceAccountName']}", names)
            secrets = {doc["spec"]["secretName"] for doc in of_kind(docs, "Certificate")}
            for source in (source for c in containers(workload) for source in c.get("envFrom", [])):
                if "configMapRef" in source:
                    self.assertIn(f"ConfigMap/{source['configMapRef']['name']}", names)
            volumes = {volume["name"]: volume for volume in pod(workload).get("volumes", [])}
            for volume in volumes.values():
                if "persistentVolumeClaim" in volume:
                    self.assertIn(f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}", names)
                if "secret" in volume:
                    self.assertIn(volume["secret"]["secretName"], secrets)
            claims = [claim["metadata"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
            self.assertFalse([c for c in claims if "app.kubernetes.io/version" in c.get("labels", {})],
                             "claim templates cannot change: no upgrade could be applied")
            mounted = {mount["name"]: mount["mountPath"] for c in containers(workload) for mount in c.get("volumeMounts", [])}
            self.assertEqual(set(mounted), set(volumes) | {claim["name"] for claim in claims})
            for flag, value in flags(pod(workload)["containers"][0]).items():
                if value.startswith("/") and not flag.endswith("listen"):
                    self.assertTrue(any(value == path or value.startswith(path + "/") for path in mounted.values()), f"{flag}={value}")

    def test_everything_is_labelled_in_the_standard_way(self):
        version = re.search(r"^project\(almost VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE).group(1)
        for _, workload in self.every(*WORKLOADS):
            for labels in (workload["metadata"]["labels"], template(workload)["metadata"]["labels"]):
                self.assertEqual(labels.get("app.kubernetes.io/name"), workload["metadata"]["name"])
                self.assertEqual({key: labels.get(f"app.kubernetes.io/{key}") for key in ("part-of", "instance", "managed-by")},
                                 {"part-of": "almost", "instance": "almost", "managed-by": "kustomize"})
                self.assertTrue(labels.get("app.kubernetes.io/component"))
            self.assertEqual(template(workload)["metadata"]["labels"].get("app.kubernetes.io/version"), version)
            for container in containers(workload):
                image, tag = container["image"].split(":")
                self.assertIn(image, [f"almost/{name}" for name in (*SERVICES, "cli")])
                self.assertIn(tag, (version, f"{version}-cuda"))
        for _, doc in self.every():
            self.assertEqual(doc["metadata"].get("namespace", doc["metadata"]["name"]), "almost")

    def test_every_container_is_restricted(self):
        for _, workload in self.every(*WORKLOADS):
            self.assertIs(pod(workload)["automountServiceAccountToken"], False)
            self.assertTrue(pod(workload)["securityContext"]["runAsNonRoot"])
            self.assertEqual(pod(workload)["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            for container in containers(workload):
                self.assertEqual(container["securityContext"], {
                    "runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}})
                self.assertTrue({"cpu", "memory"} <= container["resources"]["requests"].keys())
                self.assertIn("memory", container["resources"]["limits"])

    def test_a_container_that_computes_on_a_gpu_gets_one(self):
        computing = set()
        for _, workload in self.every(*WORKLOADS):
            container = pod(workload)["containers"][0]
            on_gpu = flags(container).get("--device") == "cuda:0"
            self.assertEqual(container["resources"]["limits"].get("nvidia.com/gpu"), "1" if on_gpu else None)
            self.assertEqual(container["image"].endswith("-cuda"), on_gpu)
            if on_gpu:
                computing.add(workload["metadata"]["name"])
        self.assertEqual(computing, {"generation", "reward", "trainer"})

    def test_where_models_of_7b_are_trained_a_checkpoint_fits_into_memory(self):
        # 14 bytes of each of 7.6 billion parameters: bfloat16 weights, their float32 copy and AdamW's moments.
        for name, docs in parsed().items():
            if not re.search(r"^prod|/prod|/gpu", name):
                continue
            (trainer,) = [doc for doc in of_kind(docs, *WORKLOADS) if doc["metadata"]["name"] == "trainer"]
            resources = pod(trainer)["containers"][0]["resources"]
            self.assertGreater(int(resources["limits"]["memory"].removesuffix("Gi")) * 2**30, 14 * 7.6e9, name)
            self.assertEqual(resources["requests"]["memory"], resources["limits"]["memory"], name)

    def test_prod_has_two_of_what_can_be_two(self):
        docs = parsed()["overlays/prod"]
        numbers = {doc["metadata"]["name"]: doc["spec"].get("replicas") for doc in of_kind(docs, "Deployment")}
        (scaler,) = of_kind(docs, "ScaledObject")
        numbers[scaler["spec"]["scaleTargetRef"]["name"]] = scaler["spec"]["minReplicaCount"]
        self.assertEqual(numbers, {"generation": 2, "reward": 2, "simulator": 2})

    def test_the_run_of_ones_own_has_every_file_that_its_recipe_names(self):
        recipe = ROOT / "deploy/recipes/llama.yaml"
        fields = yaml.safe_load(recipe.read_text())
        named_files = {fields["prompts"]["seed_path"], fields["evaluation"]["prompts_path"],
                       *(path for each in fields["demonstrations"] for path in each["paths"])}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(recipe, pathlib.Path(folder) / "recipe.yaml")
            for name in named_files:
                (pathlib.Path(folder) / name).write_text(name)
            docs = kustomize_shown("my-run/kustomization.yaml", folder)
        (job,), (files,) = of_kind(docs, "Job"), of_kind(docs, "ConfigMap")
        self.assertEqual(set(files["data"]), {"recipe.yaml", *named_files})
        self.assertEqual(pod(job)["volumes"], [{"name": "recipe", "configMap": {"name": files["metadata"]["name"]}}])
        (container,) = pod(job)["containers"]
        self.assertEqual(container["volumeMounts"], [{"name": "recipe", "mountPath": "/recipe"}])
        self.assertEqual(container["args"][0], "/recipe/recipe.yaml")

    def test_the_label_that_kube_prometheus_stack_selects_by_can_be_added(self):
        with tempfile.TemporaryDirectory() as folder:
            (monitor,) = of_kind(kustomize_shown("my-prod/kustomization.yaml", folder), "ServiceMonitor")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "my-release")

    def test_the_loader_is_restricted_writes_the_models_and_gets_out(self):
        docs = list(yaml.safe_load_all(shown("loader.yaml")))
        (loader,), (policy,) = of_kind(docs, "Pod"), of_kind(docs, "NetworkPolicy")
        self.assertEqual({doc["metadata"]["namespace"] for doc in docs}, {"almost"})
        security = loader["spec"]["securityContext"]
        self.assertEqual((security["runAsNonRoot"], security["seccompProfile"]), (True, {"type": "RuntimeDefault"}))
        self.assertEqual({security["runAsUser"], security["runAsGroup"], security["fsGroup"]}, {65532})
        (container,) = loader["spec"]["containers"]
        self.assertEqual(container["securityContext"], {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}})
        self.assertEqual(container["volumeMounts"], [{"name": "models", "mountPath": "/models"}])
        self.assertEqual(loader["spec"]["volumes"], [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}])
        self.assertTrue(matches(policy["spec"]["podSelector"]["matchLabels"], loader["metadata"]["labels"]))
        self.assertEqual(policy["spec"]["egress"], [{"ports": [{"port": 443}]}])

    def test_with_s3_no_pod_needs_the_shared_store(self):
        for name, docs in parsed().items():
            if "s3" not in name.split("+"):
                continue
            with self.subTest(rendering=name):
                self.assertNotIn("PersistentVolumeClaim/store", {named(doc) for doc in docs})
                for workload in of_kind(docs, *WORKLOADS):
                    given = flags(pod(workload)["containers"][0])
                    if "--store" not in given:
                        continue
                    self.assertTrue(given["--store"].startswith("s3://"), given)
                    self.assertEqual(pod(workload)["containers"][0]["envFrom"],
                                     [{"configMapRef": {"name": "s3"}}, {"secretRef": {"name": "s3"}}])
                    (cache,) = [v for v in pod(workload)["volumes"] if v["name"] == "store"]
                    limit = int(cache["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
                    self.assertLess(float(given["--store_cache_gigabytes"]) * 1e9, limit, "evicted before it evicts")

    def test_every_flag_is_one_of_the_binary(self):
        for _, workload in self.every(*WORKLOADS):
            container = pod(workload)["containers"][0]
            binary = container["command"][0]
            self.assertEqual(container["image"].split(":")[0], "almost/" + (binary.removeprefix("almost-") if "-" in binary else "cli"))
            self.assertEqual(set(flags(container)) - offered(tuple(container["command"])), set())
            for argument in container.get("args", []):
                if argument.startswith("/usr/share/almost/"):  # where the image keeps this tree's files
                    self.assertTrue((ROOT / argument.removeprefix("/usr/share/almost/")).is_file(), argument)
            for init in pod(workload).get("initContainers", []):
                self.assertTrue((ROOT / init["command"][3]).is_dir(), init["command"])

    def test_ports_and_probes_are_those_of_the_binary(self):
        for _, workload in self.servers():
            container = pod(workload)["containers"][0]
            given = flags(container)
            self.assertEqual(given["--listen"], f"0.0.0.0:{ports(workload)['grpc']}")
            self.assertEqual(given["--metrics_listen"], f"0.0.0.0:{ports(workload)['metrics']}")
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[kind]
                if "--tls_cert" in given:  # the kubelet's gRPC probes are plaintext
                    self.assertEqual(probe["httpGet"], {"port": "metrics", "path": "/healthz" if kind == "livenessProbe" else "/readyz"})
                    continue
                self.assertEqual(probe["grpc"]["port"], ports(workload)["grpc"])
                self.assertEqual("service" in probe["grpc"], kind == "readinessProbe")
                self.assertIn(probe["grpc"].get("service", ""), health_names() | {""})

    def test_a_pod_has_the_time_to_drain(self):
        for _, workload in self.servers():
            container = pod(workload)["containers"][0]
            seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"] + TURN_AWAY_SECONDS + float(flags(container)["--drain_seconds"])
            self.assertLess(seconds + 5, pod(workload)["terminationGracePeriodSeconds"])

    def test_callers_find_and_may_reach_whom_they_call(self):
        for docs, caller in self.servers():
            labels = template(caller)["metadata"]["labels"]
            for callee, target in flags(pod(caller)["containers"][0]).items():
                if callee.removeprefix("--") not in SERVICES:
                    continue
                host, port = target.removeprefix("dns:///").split(":")
                (service,) = [d for d in of_kind(docs, "Service") if d["metadata"]["name"] == host]
                self.assertIn(("grpc", int(port)), [(p["name"], p["port"]) for p in service["spec"]["ports"]])
                self.assertEqual(target.startswith("dns:///"), service["spec"].get("clusterIP") == "None", target)
                (workload,) = self.workloads_matching(docs, service["spec"]["selector"])
                for certificate in of_kind(docs, "Certificate"):
                    if certificate["metadata"]["name"] == host:
                        self.assertIn(host, certificate["spec"]["dnsNames"])
                if of_kind(docs, "NetworkPolicy"):
                    self.allows(docs, labels, template(workload)["metadata"]["labels"], int(port))

    def test_policies_let_through_what_they_must_and_no_more(self):
        for name, docs in parsed().items():
            policies = of_kind(docs, "NetworkPolicy")
            if not policies:
                continue
            with self.subTest(rendering=name):
                self.assertIn({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, [p["spec"] for p in policies])
                (job,) = of_kind(parsed()["run"], "Job")
                run = template(job)["metadata"]["labels"]
                pods = {w["metadata"]["name"]: w for w in of_kind(docs, *WORKLOADS)}
                edges = {(a, b) for a, b in itertools.permutations(pods, 2) if self.passes(
                    docs, template(pods[a])["metadata"]["labels"], template(pods[b])["metadata"]["labels"], ports(pods[b])["grpc"])}
                called = {(a, flag.removeprefix("--")) for a in pods for flag in flags(pod(pods[a])["containers"][0])
                          if flag.removeprefix("--") in SERVICES}
                # Where PPO gets its scores: the orchestrator tells the trainer the address.
                self.assertEqual(edges, called | {("trainer", "reward")})
                self.assertEqual({name for name, server in pods.items() if self.passes(
                    docs, run, template(server)["metadata"]["labels"], ports(server)["grpc"])}, {"orchestrator", "generation", "reward"})

    def allows(self, docs, source, destination, port):
        self.assertTrue(self.passes(docs, source, destination, port), (source, destination, port))

    def passes(self, docs, source, destination, port):
        """Whether both ends' policies let a connection between Pods with these labels through."""
        def one_side(direction, of, peer):
            rules = [rule for policy in of_kind(docs, "NetworkPolicy")
                     if matches(policy["spec"]["podSelector"].get("matchLabels", {}), of)
                     for rule in policy["spec"].get(direction, [])]
            return any(("ports" not in rule or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"])) and
                       any("namespaceSelector" not in end and matches(end["podSelector"]["matchLabels"], peer)
                           for end in rule["to" if direction == "egress" else "from"])
                       for rule in rules)
        return one_side("egress", source, destination) and one_side("ingress", destination, source)

    def test_the_ranks_of_the_trainer_find_and_reach_one_another(self):
        found = 0
        for docs, workload in self.every("Job"):
            if workload["spec"].get("completionMode") != "Indexed":
                continue
            found += 1
            spec, container = workload["spec"], pod(workload)["containers"][0]
            environment = {variable["name"]: variable.get("value") for variable in container["env"]}
            self.assertEqual(set(environment), {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
            help_text = subprocess.run([BIN / container["command"][0], "--help"], check=True, capture_output=True, text=True).stdout
            for name in environment:
                self.assertIn(f"(Env:{name})", help_text)
            self.assertEqual({spec["completions"], spec["parallelism"]}, {int(environment["WORLD_SIZE"])})
            self.assertEqual(spec["podReplacementPolicy"], "Failed")
            self.assertEqual(environment["MASTER_PORT"], str(ports(workload)["rendezvous"]))
            (service,) = [d for d in of_kind(docs, "Service") if d["metadata"]["name"] == pod(workload)["subdomain"]]
            self.assertEqual(environment["MASTER_ADDR"], f"{workload['metadata']['name']}-0.{service['metadata']['name']}")
            self.assertEqual(service["spec"]["clusterIP"], "None")
            self.assertTrue(service["spec"]["publishNotReadyAddresses"])
            # Calls go to index 0, which has what the others know of: store and models are on claims that all mount.
            labels = template(workload)["metadata"]["labels"]
            (front,) = [d for d in of_kind(docs, "Service") if d["metadata"]["name"] == workload["metadata"]["name"]]
            self.assertTrue(matches(front["spec"]["selector"], labels_of_pods(workload)))
            self.assertFalse(matches(front["spec"]["selector"], {**labels, "batch.kubernetes.io/job-completion-index": "1"}))
            self.assertTrue(all("emptyDir" in volume or "persistentVolumeClaim" in volume or "secret" in volume
                                for volume in pod(workload)["volumes"]))
            for claim in of_kind(docs, "PersistentVolumeClaim"):
                self.assertEqual(claim["spec"]["accessModes"], ["ReadWriteMany"])
            if of_kind(docs, "NetworkPolicy"):
                for port in (ports(workload)["rendezvous"], 1024, 65535):
                    self.allows(docs, labels, labels, port)
        self.assertGreater(found, 20)

    def test_autoscalers_ask_for_metrics_of_the_catalogue(self):
        catalogue = set(re.findall(r"^\| `(\w+)`", (ROOT / "common/docs/metrics.md").read_text(), re.MULTILINE))
        for _, doc in self.every("HorizontalPodAutoscaler", "ScaledObject"):
            asked = set(re.findall(r"\balmost_\w+", json.dumps(doc["spec"])))
            self.assertTrue(asked)
            self.assertEqual(asked - catalogue, set())

    def test_the_ranks_start_and_stop_as_the_job_has_them(self):
        (job,) = of_kind(parsed()["base+training-nodes"], "Job")
        container = pod(job)["containers"][0]
        port = free_port()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
            for rank in range(job["spec"]["completions"]):
                environment = {"RANK": str(rank), "WORLD_SIZE": str(job["spec"]["completions"]), "MASTER_ADDR": "127.0.0.1",
                               "MASTER_PORT": str(port)}
                # An index whose process ends with 0 would be taken for done.
                ready = running.enter_context(started(container, folder, environment, ends_with=128 + signal.SIGTERM))
                self.assertEqual(health(ready["port"], container["readinessProbe"]["grpc"]["service"]), {"status": "SERVING"})

    def test_the_services_start_with_these_arguments(self):
        # Paths and ports are this test's; with prod's arguments the certificates are too.
        for overlay in ("dev", "prod"):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
                make_certificates(pathlib.Path(folder) / "tls")
                for workload in of_kind(parsed()[f"overlays/{overlay}"], "Deployment", "StatefulSet"):
                    with self.subTest(overlay=overlay, service=workload["metadata"]["name"]):
                        probe = pod(workload)["containers"][0]["readinessProbe"]
                        ready = running.enter_context(started(pod(workload)["containers"][0], folder))
                        if "grpc" in probe:
                            self.assertEqual(health(ready["port"], probe["grpc"]["service"]), {"status": "SERVING"})
                        for path in ("healthz", "readyz"):
                            with urllib.request.urlopen(f"http://127.0.0.1:{ready['metrics_port']}/{path}", timeout=10) as answer:
                                self.assertEqual(answer.status, 200)


# As the kubelet has it: the servers' reflection does not list it.
HEALTH = """syntax = "proto3"; package grpc.health.v1;
message Request { string service = 1; }
message Response { enum Status { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; } Status status = 1; }
service Health { rpc Check(Request) returns (Response); }"""


def health(port, service):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "health.proto").write_text(HEALTH)
        return json.loads(subprocess.run(
            [TOOLS / "grpcurl", "-plaintext", "-import-path", folder, "-proto", "health.proto", "-d", json.dumps({"service": service}),
             f"127.0.0.1:{port}", "grpc.health.v1.Health/Check"], check=True, capture_output=True, text=True).stdout)


def make_certificates(folder):
    """tls.crt, tls.key and ca.crt, as cert-manager's secrets have them."""
    folder.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test",
                    "-days", "2", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"], check=True, capture_output=True)
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())


@contextlib.contextmanager
def started(container, folder, environment=None, ends_with=0):
    """The container's process, its mounts beneath `folder`; the fields of its `ready` event. SIGTERM ends it as said."""
    own = {"--listen": "127.0.0.1:0", "--metrics_listen": "127.0.0.1:0"}
    arguments = []
    for flag, value in flags(container).items():
        value = own.get(flag, folder + value if value.startswith("/") else value)
        arguments.append(f"{flag}={value}" if value else flag)
    for mount in container.get("volumeMounts", []):
        os.makedirs(folder + mount["mountPath"], exist_ok=True)
    process = subprocess.Popen([BIN / container["command"][0], *container["command"][1:], *arguments],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            with contextlib.suppress(ValueError):
                if json.loads(line).get("event") == "ready":
                    yield json.loads(line)
                    break
        else:
            raise AssertionError("".join(said))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == ends_with, process.returncode


if __name__ == "__main__":
    unittest.main()
