"""common/docs/metrics.md is what the services export: every series, its type and its labels, in both directions."""

import collections
import re
import threading
import unittest
import urllib.request

from suite import SERVICES, SMOKE, SOURCE, Suite

Series = collections.namedtuple("Series", "type labels")
ALL = (*SERVICES, "judge")


def read_catalogue(text):
    """{service: {name: Series}} and the names that appear only once something has happened."""
    catalogue, occasional, services = {service: {} for service in ALL}, set(), ()
    for line in text.splitlines():
        if line.startswith("## "):
            where = line[3:].split(": ")[-1]
            services = ALL if where == "Every service" else tuple(where.split(", "))
        row = re.fullmatch(r"\| `(\w+)`( \*)? \| (\w+) \| ([\w, ]*?) ?\| ([^|]+) \| ([^|]+) \|", line)
        if not row:
            continue
        name, star, kind, labels, _, _ = row.groups()
        for service in services:
            catalogue[service][name] = Series(kind, frozenset(labels.split(", ")) - {""})
        if star:
            occasional.add(name)
    return catalogue, occasional


def read_exposition(text):
    """{name: Series}; a family whose members differ in their labels is a mistake and fails."""
    types, found = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, types[name] = line.split()
        if line.startswith("#") or not line:
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
        if name not in types:
            name = re.sub(r"_(bucket|sum|count)$", "", name)
        labels = frozenset(re.findall(r'(\w+)="', labels or "")) - {"le"}
        series = found.setdefault(name, Series(types[name], labels))
        if series.labels != labels:
            raise AssertionError(f"{name} has members with {set(series.labels)} and with {set(labels)}")
    return found


class Metrics(unittest.TestCase):
    def test_the_catalogue_is_what_is_exported(self):
        catalogue, occasional = read_catalogue((SOURCE / "common/docs/metrics.md").read_text())
        exported = {service: {} for service in ALL}
        with Suite() as suite:
            pages = {service: f"http://{where['metrics']}/metrics" for service, where in suite.services().items()}
            self.assertEqual(set(pages), set(ALL))
            ended = threading.Event()
            errors = []
            last_pages = {}

            def scrape():
                """Until the run has ended, since a model's own series last as long as it is loaded; then once more."""
                try:
                    while True:
                        last = ended.is_set()
                        for service, page in pages.items():
                            with urllib.request.urlopen(page, timeout=10) as answer:
                                last_pages[service] = answer.read().decode()
                            exported[service].update(read_exposition(last_pages[service]))
                        if last:
                            return
                        ended.wait(0.02)
                except Exception as error:  # pylint: disable=broad-except
                    errors.append(error)

            scraper = threading.Thread(target=scrape)
            scraper.start()
            try:
                suite.run(SMOKE, "smoke")
            finally:
                ended.set()
                scraper.join()
            self.assertEqual(errors, [])
            self.assertNotIn(' run="', last_pages["orchestrator"].replace("{", " ").replace(",", " "))

        for service in ALL:
            with self.subTest(service=service):
                known, seen = catalogue[service], exported[service]
                self.assertEqual(set(seen) - set(known), set(), "exported and not in the catalogue")
                self.assertEqual(set(known) - set(seen) - occasional, set(), "in the catalogue and not exported")
                for name, series in seen.items():
                    self.assertEqual(series, known[name], name)
        for name in occasional:
            service = next(service for service in ALL if name in catalogue[service])
            sources = (SOURCE / "services" / service).rglob("*.[hc]*")
            self.assertTrue(any(f'"{name}"' in source.read_text() for source in sources), f"{name} is nowhere in {service}")

    def test_names_follow_the_conventions(self):
        catalogue, _ = read_catalogue((SOURCE / "common/docs/metrics.md").read_text())
        for service, names in catalogue.items():
            self.assertGreater(len(names), 10, service)
            for name, series in names.items():
                self.assertRegex(name, "^(almost|grpc|process)_", name)
                self.assertEqual(name.endswith("_total"), series.type == "counter", name)
                self.assertIn(series.type, ("counter", "gauge", "histogram"), name)
                if name != "almost_orchestrator_run_progress_ratio":
                    self.assertFalse(series.labels & {"run", "run_id", "request_id", "user", "trace_id"}, name)


if __name__ == "__main__":
    unittest.main()
