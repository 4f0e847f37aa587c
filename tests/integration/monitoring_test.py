"""deploy/monitoring against a real Prometheus that watches a real run.

Prometheus, promtool and Grafana's schema are those that deploy/setup --full fetches. Prometheus listens on loopback and keeps
its data in a folder of the test.
"""

import functools
import importlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

from metrics_test import read_catalogue
from ports import free_port
from suite import SMOKE, SOURCE, Suite

PROMETHEUS = os.environ["PROMETHEUS"]
PROMTOOL = os.environ["PROMTOOL"]
sys.path.insert(0, os.environ["GRAFANA_SDK"])

MONITORING = SOURCE / "deploy/monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
RULES = [MONITORING / "rules.yaml", MONITORING / "alerts.yaml"]
GUIDE = SOURCE / "common/docs/operations.md"
MAX_RUNS = 20
NUM_CANCELLED_RUNS = 1000

# Series that are not the suite's: Prometheus' own, and the kubelet's, which is not here.
NOT_OURS = {"up"}
KUBELET = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}

# Words of PromQL before a parenthesis or beside an operator; everything else that looks like a name is one.
SELECTOR = re.compile(r"([a-z_:][\w:]*)(\{[^}]*\})?(?:\[[^\]]+\])?")
WORDS = {"and", "or", "unless", "on", "ignoring", "by", "without", "bool", "offset", "group_left", "group_right"}


def selectors(expression):
    """[(metric, selector)] of every series that the expression reads."""
    found = []
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", expression)
    for match in SELECTOR.finditer(bare):
        name = match.group(1)
        before, after = bare[:match.start()], bare[match.end():]
        if name in WORDS or re.match(r"\s*\(", after) or re.search(r"[\w.\"]$", before):
            continue
        if before.count('"') % 2 == 0:
            found.append((name, name + (match.group(2) or "")))
    return found


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@functools.cache
def dashboards():
    return {path.name: json.loads(path.read_text()) for path in DASHBOARDS}


def targets():
    """[(where, what a panel asks, its expression with the variables at "All")]"""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "15s")
                expression = re.sub(r'"\$\w+"', '".*"', expression)
                yield f"{name}: {panel['title']}", target, expression


@functools.cache
def occasional_series():
    """Those that a healthy run may do without."""
    _, occasional = read_catalogue((SOURCE / "common/docs/metrics.md").read_text())
    return occasional | {f"{name}{part}" for name in occasional for part in ("_bucket", "_sum", "_count")}


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *map(str, arguments)], cwd=MONITORING, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """with Prometheus({job: host:port}) as prometheus: it scrapes and evaluates the rules five times a second."""

    def __init__(self, pages):
        self._folder = tempfile.TemporaryDirectory(prefix="almost-prometheus-")
        folder = pathlib.Path(self._folder.name)
        scrapes = [{"job_name": job, "static_configs": [{"targets": [page]}]} for job, page in pages.items()]
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [str(path) for path in RULES], "scrape_configs": scrapes}))
        self._log = folder / "log"
        self._address = f"127.0.0.1:{free_port()}"

    def __enter__(self):
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [PROMETHEUS, "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                 f"--web.listen-address={self._address}"], cwd=self._folder.name, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                    return self
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise AssertionError(self._log.read_text()[-4000:]) from error
                time.sleep(0.05)

    def __exit__(self, kind, error, trace):
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._folder.cleanup()

    def api(self, path, **parameters):
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def data(self, expression, start, instant=False):
        """The labels of what the expression has a finite value of, now or, unless `instant`, at some time since `start`."""
        now = time.time()
        if instant:
            series = self.api("query", query=expression, time=now)["result"]
        else:
            series = self.api("query_range", query=expression, start=start, end=now, step=max(0.05, (now - start) / 5000))["result"]
        return [one["metric"] for one in series
                if any(math.isfinite(float(value)) for _, value in one.get("values", [one.get("value")]))]


class WatchedRun(unittest.TestCase):
    """One suite, one Prometheus, some runs of the smoke recipe; then everything is asked of it."""

    @classmethod
    def setUpClass(cls):
        cls.start = time.time()
        cls.suite = cls.enterClassContext(Suite())
        pages = {service: where["metrics"] for service, where in cls.suite.services().items()}
        cls.prometheus = cls.enterClassContext(Prometheus(pages))
        cls.wait_for(f"count(up == 1) == {len(pages)}")  # it finds its targets only some seconds after its start
        # A job of the smoke recipe lasts for one or two scrapes: runs, each of a seed of its own, until all has been seen.
        for cls.num_runs in range(1, MAX_RUNS + 1):
            cls.suite.run(SMOKE, f"smoke-{cls.num_runs}", "--seed", cls.num_runs)
            cls.wait_for(f'almost_orchestrator_runs{{state="succeeded"}} == {cls.num_runs}')
            if cls.num_runs > 1 and not any(cls.panel_problem(target, expression) for _, target, expression in targets()):
                break
        # The longest chain of rules after it: a recorded series that an alert reads over a range.
        cls.wait_for("job:grpc_server_errors:increase6h")

    @classmethod
    def wait_for(cls, expression):
        deadline = time.monotonic() + 30
        while not cls.prometheus.data(expression, cls.start, instant=True):
            if time.monotonic() > deadline:
                raise AssertionError(f"no {expression} after 30 seconds")
            time.sleep(0.1)

    @classmethod
    def panel_problem(cls, target, expression):
        """What is wrong with what a panel would show; None: nothing."""
        data = cls.prometheus.data(expression, cls.start)
        if not data:
            occasional = any(metric in occasional_series() for metric, _ in selectors(expression))
            return None if occasional else "no data"
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"namespace"}
        return None if any(legend <= set(labels) for labels in data) else f"{legend} in no series"

    def rules(self):
        return [rule for group in self.prometheus.api("rules")["groups"] for rule in group["rules"]]

    def test_every_panel_has_data(self):
        count = 0
        for where, target, expression in targets():
            with self.subTest(where, expression=expression):
                self.assertIsNone(self.panel_problem(target, expression))
            count += 1
        self.assertGreater(count, 50)

    def test_every_rule_can_be_evaluated_and_every_series_it_reads_is_there(self):
        rules = self.rules()
        self.assertGreater(len(rules), 15)
        for rule in rules:
            with self.subTest(rule["name"]):
                self.assertEqual((rule["health"], rule.get("lastError", "")), ("ok", ""))
                self.prometheus.api("query", query=rule["query"])
                read = selectors(rule["query"])
                self.assertTrue(read)
                for metric, selector in read:
                    if metric not in KUBELET:
                        self.assertTrue(self.prometheus.data(selector, self.start), selector)
                if rule["type"] == "recording":
                    self.assertTrue(self.prometheus.data(rule["query"], self.start), "no data")
                    self.assertTrue(self.prometheus.data(rule["name"], self.start), "not recorded")

    def test_a_healthy_run_spends_no_error_budget(self):
        for window in ("5m", "30m", "1h", "6h", "3d"):
            self.assertFalse(self.prometheus.data(f"job:grpc_server_errors:ratio_rate{window} > 0", self.start), window)

    def test_variables_offer_values(self):
        for name, dashboard in dashboards().items():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "datasource":
                    continue
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
                values = self.prometheus.api(f"label/{label}/values", **{"match[]": metric, "start": self.start})
                with self.subTest(name, variable=variable["name"]):
                    if label == "namespace":
                        self.assertEqual(values, [], "there is no Kubernetes here")
                    else:
                        self.assertTrue(values)

    def test_no_series_is_kept_for_a_run_that_has_ended(self):
        page = f"http://{self.suite.services()['orchestrator']['metrics']}/metrics"

        def num_series():
            with urllib.request.urlopen(page, timeout=10) as answer:
                return sum(not line.startswith(b"#") for line in answer)

        def cancel_one(number):
            run = f"cancelled-{number}"
            self.suite.almost("run", SMOKE, "--id", run)
            self.suite.almost("runs", "cancel", run)

        cancel_one("first")
        before = num_series()
        for number in range(NUM_CANCELLED_RUNS):
            cancel_one(number)
        after = num_series()
        print(f"series of the orchestrator: {before} after {self.num_runs + 1} runs, {after} after {NUM_CANCELLED_RUNS} more")
        # A code that no call had ended with before may add a few.
        self.assertLess(after, before + 50)


class Files(unittest.TestCase):
    def test_promtool_accepts_the_rules(self):
        status, output = promtool("check", "rules", *RULES)
        self.assertEqual(status, 0, output)

    def test_alerts_fire_and_are_silent_as_their_unit_tests_say(self):
        status, output = promtool("test", "rules", "alerts_test.yaml")
        self.assertEqual(status, 0, output)
        tests = (MONITORING / "alerts_test.yaml").read_text()
        for alert in self.alerts():
            self.assertRegex(tests, rf"alertname: {alert}\n +exp_alerts:\n", f"{alert} never fires in a test")

    def alerts(self):
        """{name: the text of its rule}"""
        rules = re.split(r"\n      - alert: ", (MONITORING / "alerts.yaml").read_text())[1:]
        return {rule.split("\n")[0]: rule for rule in rules}

    def test_alerts_say_what_they_mean_and_what_to_do(self):
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                   for title in re.findall(r"^#+ (.+)$", GUIDE.read_text(), re.MULTILINE)}
        for alert, rule in self.alerts().items():
            with self.subTest(alert):
                self.assertRegex(rule, r"severity: (critical|warning)\b")
                self.assertRegex(rule, r"\n +summary: .+[.]\n")
                self.assertRegex(rule, r'\n +description: ".+[.]"\n')
                path, anchor = re.search(r"runbook_url: (\S+)#(\S+)", rule).groups()
                self.assertEqual(SOURCE / path, GUIDE)
                self.assertIn(anchor, anchors)

    def test_series_that_are_read_are_in_the_catalogue_and_those_in_it_are_read(self):
        catalogue, _ = read_catalogue((SOURCE / "common/docs/metrics.md").read_text())
        known = {name for names in catalogue.values() for name in names}
        text = "\n".join(path.read_text() for path in RULES)
        recorded = set(re.findall(r"record: (\S+)", text))
        expressions = [expression for _, _, expression in targets()]
        for block in re.findall(r"\n( +)expr: (\|-\n(?:\1  .*\n)+|.*\n)", text):
            expressions.append(block[1].removeprefix("|-\n"))
        read = {metric for expression in expressions for metric, _ in selectors(expression)}
        series = {name if name in known else re.sub(r"_(bucket|sum|count)$", "", name) for name in read - recorded}
        self.assertEqual(series - known - NOT_OURS - KUBELET, set(), "read and not in the catalogue")
        ours = {name for name in known if name.startswith("almost_")}
        self.assertEqual(ours - series, set(), "in the catalogue and on no dashboard, rule or alert")

    def test_dashboards_answer_questions(self):
        for name, dashboard in dashboards().items():
            with self.subTest(name):
                self.assertEqual(dashboard["uid"], f"almost-{name.removesuffix('.json')}")
                titles = [panel["title"] for panel in panels(dashboard)]
                self.assertEqual(len(titles), len(set(titles)))
                for panel in panels(dashboard):
                    with self.subTest(panel["title"]):
                        self.assertRegex(panel["title"], r"^[A-Z].*\?$")
                        self.assertRegex(panel["description"], r"^[A-Z0-9].*\.$")
                        self.assertRegex(panel["fieldConfig"]["defaults"]["unit"], r"^\w+$|^suffix:.")

    def test_dashboards_are_sound(self):
        for name, dashboard in dashboards().items():
            variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
            with self.subTest(name):
                ids = [panel["id"] for panel in dashboard["panels"]]
                self.assertEqual(len(ids), len(set(ids)))
                for variable in variables.values():
                    if variable["type"] == "query":
                        self.assertEqual((variable["includeAll"], variable["allValue"]), (True, ".*"), variable["name"])
                taken = set()
                used = {"datasource"}
                for panel in dashboard["panels"]:
                    at = panel["gridPos"]
                    cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
                    self.assertFalse(cells & taken, f"{panel['title']} lies over another panel")
                    self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
                    taken |= cells
                for panel in panels(dashboard):
                    self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])
                    for target in panel["targets"]:
                        self.assertIn('namespace=~"$namespace"', target["expr"], panel["title"])
                        used |= set(re.findall(r'=~"\$(\w+)"', target["expr"]))
                        self.assertFalse(re.findall(r'[^~]"\$|="\$', target["expr"]), target["expr"])
                self.assertEqual(used, set(variables), "variables that panels use, and those there are")

    def test_grafana_s_schema_knows_every_field(self):
        """Decoded by Grafana's own classes and encoded again, nothing has been lost or changed."""
        module = lambda part: importlib.import_module(f"grafana_foundation_sdk.{part}")  # noqa: E731
        module("cog.plugins").register_default_plugins()
        for name, dashboard in dashboards().items():
            decoded = module("models.dashboard").Dashboard.from_json(dashboard)
            encoded = json.loads(json.dumps(decoded, cls=module("cog.encoder").JSONEncoder))
            with self.subTest(name):
                self.assertEqual(missing(dashboard, encoded), [])


def missing(before, after, where=""):
    """Paths of what `after` lacks or has otherwise; it may have more."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [path for key, value in before.items()
                for path in ([f"{where}.{key}"] if key not in after else missing(value, after[key], f"{where}.{key}"))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [path for i, pair in enumerate(zip(before, after)) for path in missing(*pair, f"{where}[{i}]")]
    return [] if before == after else [where]


if __name__ == "__main__":
    unittest.main()
