"""deploy/compose without an engine: read as Docker Compose reads it, and compared with the binaries and with what it mounts."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from suite import BIN, SERVICES, SOURCE

FOLDER = SOURCE / "deploy/compose"
OURS = (*SERVICES, "judge")
VERSION = re.search(r"^project\(.*?VERSION ([\d.]+)", (SOURCE / "CMakeLists.txt").read_text(), re.MULTILINE | re.DOTALL).group(1)


def load(**environment):
    """The file as `docker compose config` has it, its variables filled in from .env and what is given, and every profile on."""
    variables = dict(line.split("=", 1) for line in (FOLDER / ".env").read_text().splitlines() if re.match(r"\w+=", line))
    variables |= environment
    # The reader's own command does not look into the environment; it knows defaults.
    text = re.sub(r"\$\{(\w+)(:-[^}]*)?\}", lambda match: variables.get(match.group(1), match.group(0)) if match.group(2)
                  else variables[match.group(1)], (FOLDER / "compose.yaml").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([os.environ["COMPOSE_CONFIG"], "-format", "json", file.name], cwd=FOLDER, capture_output=True,
                              text=True, timeout=60, env={**os.environ, "COMPOSE_PROFILES": "run"})
    if done.returncode != 0 or "not set" in done.stderr:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def flags(arguments):
    return dict(argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.services = load()["services"]
        cls.prometheus = (FOLDER / "prometheus.yml").read_text()

    def mounts(self, service):
        """{path in the container: path here} of what is mounted from the repository."""
        return {mount["target"]: pathlib.Path(mount["source"]) for mount in self.services[service]["volumes"]
                if mount["type"] == "bind"}

    def test_no_container_has_more_rights_than_it_needs(self):
        self.assertEqual(set(self.services), {*OURS, "run", "prometheus", "grafana"})
        for name, service in self.services.items():
            with self.subTest(name):
                self.assertRegex(service["user"], r"^[1-9]\d*:")
                self.assertTrue(service["read_only"])
                self.assertEqual((service["cap_drop"], service["security_opt"]), (["ALL"], ["no-new-privileges:true"]))
                self.assertNotIn("privileged", service)
                for port in service.get("ports", []):
                    self.assertEqual(port["host_ip"], "127.0.0.1")
                for mount in service.get("volumes", []):
                    self.assertTrue(mount["type"] == "volume" or mount["read_only"], mount["target"])
                if name != "run":
                    self.assertIn("mem_limit", service)
                    self.assertIn("healthcheck", service)

    def test_memory_is_limited_as_the_environment_says(self):
        given = load(GENERATION_MEMORY="16g", REWARD_MEMORY="24g", TRAINER_MEMORY="64g")["services"]
        limits = {name: [services[name]["mem_limit"] for services in (self.services, given)] for name in ("generation", "reward", "trainer")}
        self.assertEqual(limits, {"generation": ["4g", "16g"], "reward": ["4g", "24g"], "trainer": ["8g", "64g"]})

    def test_images_have_the_names_and_the_version_of_this_tree(self):
        for name in (*OURS, "run"):
            image = "cli" if name in ("judge", "run") else name
            self.assertEqual(self.services[name]["image"], f"almost/{image}:{VERSION}")
        for name in ("prometheus", "grafana"):
            self.assertRegex(self.services[name]["image"], r":v?\d+\.\d+\.\d+$")

    def test_the_binaries_know_the_flags(self):
        for name in (*OURS, "run"):
            service = self.services[name]
            program, *words = service["entrypoint"]
            verbs = [word for word in words if not word.startswith("--")]
            known = "".join(subprocess.run([BIN / program, *arguments, "--help"], capture_output=True, text=True, check=True,
                                           timeout=60).stdout for arguments in ([], verbs))
            for flag in (*words, *service["command"]):
                if flag.startswith("--"):
                    self.assertRegex(known, rf"(?m)^\s*{flag.split('=')[0]}\b", f"{name} has no flag {flag}")

    def test_every_address_leads_to_the_service_of_that_name(self):
        listens = {name: flags(self.services[name]["command"])["--listen"] for name in OURS}
        for name in (*OURS, "run"):
            given = flags((*self.services[name]["entrypoint"], *self.services[name]["command"]))
            for flag in given.keys() & {f"--{service}" for service in OURS}:
                host, port = given[flag].removeprefix("dns:///").split(":")
                self.assertEqual(host, flag.removeprefix("--"))
                self.assertEqual(listens[host], f"0.0.0.0:{port}")
        for name in SERVICES:
            self.assertEqual([f"0.0.0.0:{port['target']}" for port in self.services[name]["ports"]], [listens[name]])

    def test_what_can_be_scaled_has_no_fixed_port_and_is_found_by_dns(self):
        for name in ("generation", "reward", "simulator"):
            self.assertNotIn("published", self.services[name]["ports"][0])
            self.assertIn(f"--{name}=dns:///{name}:{self.services[name]['ports'][0]['target']}",
                          self.services["orchestrator"]["command"])

    def test_prometheus_and_the_health_checks_ask_the_metrics_port(self):
        scraped = dict(re.findall(r"dns_sd_configs: \[\{names: \[(\w+)\], type: A, port: (\d+),", self.prometheus))
        self.assertEqual(set(scraped), set(OURS))
        self.assertEqual(re.findall(r"job_name: (\w+)", self.prometheus), list(scraped))
        for name in OURS:
            port = flags(self.services[name]["command"])["--metrics_listen"].split(":")[1]
            self.assertEqual(scraped[name], port)
            self.assertIn(f"/dev/tcp/127.0.0.1/{port};", self.services[name]["healthcheck"]["test"][-1])

    def test_promtool_accepts_the_configuration_and_what_it_names(self):
        text = self.prometheus
        for target, source in self.mounts("prometheus").items():
            self.assertTrue(source.is_file(), source)
            text = text.replace(target, str(source))
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as here:
            here.write(text)
            here.flush()
            done = subprocess.run([os.environ["PROMTOOL"], "check", "config", here.name], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("SUCCESS: 2 rule files found", done.stdout)
        usage = subprocess.run([os.environ["PROMETHEUS"], "--help"], capture_output=True, text=True, timeout=60)
        for flag in self.services["prometheus"]["command"]:
            self.assertIn(flag.split("=")[0] + "=", usage.stdout + usage.stderr)

    def test_grafana_finds_prometheus_and_the_dashboards(self):
        mounts = self.mounts("grafana")
        provisioning = mounts["/etc/grafana/provisioning/datasources"] / "prometheus.yaml"
        self.assertIn("url: http://prometheus:9090\n", provisioning.read_text())
        self.assertEqual(re.search(r"timeInterval: (\w+)", provisioning.read_text()).group(1),
                         re.search(r"scrape_interval: (\w+)", self.prometheus).group(1))
        provider = (mounts["/etc/grafana/provisioning/dashboards"] / "almost.yaml").read_text()
        dashboards = re.search(r"path: (\S+)", provider).group(1)
        home = pathlib.Path(self.services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        self.assertEqual(str(home.parent), dashboards)
        self.assertTrue((mounts[dashboards] / home.name).is_file())


if __name__ == "__main__":
    unittest.main()
