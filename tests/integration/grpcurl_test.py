"""Any client works: the grpcurl lines of README.md, run as they stand against the services."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest

from suite import SERVICES, SMOKE, SOURCE, Suite

README = (SOURCE / "README.md").read_text()
PORTS = {str(50051 + i): service for i, service in enumerate(SERVICES)}  # where README.md has them


def commands():
    """The grpcurl commands of README.md's shell blocks; one goes on while a quote is open or a line ends in \\."""
    found, command = [], ""
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command = command + "\n" + line if command else line.removeprefix("$ ")
            try:
                whole = not command.endswith("\\") and shlex.split(command) is not None
            except ValueError:  # a quote is open
                whole = False
            if whole:
                found += [command] if command.startswith("grpcurl ") else []
                command = ""
    return found


class Grpcurl(unittest.TestCase):
    def test_the_lines_of_the_readme_work(self):
        self.assertEqual({port for command in commands() for port in re.findall(r":(5005\d)", command)}, set(PORTS))
        path = f"{pathlib.Path(os.environ['GRPCURL']).parent}:{os.environ['PATH']}"
        outputs = []
        # The folders that the lines name, as in a checkout where `almost up` runs with its defaults.
        with tempfile.TemporaryDirectory(prefix="almost-test-") as folder:
            shutil.copytree(SOURCE / "common/world/models", f"{folder}/common/world/models")
            with Suite(model_root=folder, store=f"{folder}/almost-store") as suite:
                suite.run(SMOKE, "smoke")
                addresses = suite.services()
                for command in commands():
                    with self.subTest(command=command):
                        here = re.sub(r"127\.0\.0\.1:(5005\d)",
                                      lambda match: addresses[PORTS[match.group(1)]]["address"], command)
                        done = subprocess.run(here, shell=True, cwd=folder, env={**os.environ, "PATH": path},
                                              capture_output=True, text=True, timeout=60)
                        self.assertEqual(done.returncode, 0, done.stderr)
                        self.assertTrue(done.stdout)
                        outputs.append(done.stdout)
        # What the README says of the last one.
        answer = re.search(r"^answers `([^`]+)`", README, re.MULTILINE).group(1)
        self.assertIn(f'"text": "{answer}"', outputs[-1])


if __name__ == "__main__":
    unittest.main()
