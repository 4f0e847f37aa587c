"""The Python client as its users have it: built to a wheel, installed in an environment of its own, and called.

Here the standard library builds, installs and starts; what calls the services runs in that environment
(python_client_calls.py, and the README's examples as they stand).
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest

from python_client import install, run
from suite import BIN, SOURCE, Suite

README = (SOURCE / "clients/python/README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


class PythonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="almost-test-")))
        cls.python = install(cls.folder, "mypy")
        # A checkout with a suite at work in it, as the README has it.
        cls.checkout = cls.folder / "checkout"
        for path in ("common/world", "deploy/recipes"):
            shutil.copytree(SOURCE / path, cls.checkout / path)
        cls.suite = cls.enterClassContext(Suite(model_root=cls.checkout))
        (cls.checkout / "almost-store").symlink_to(cls.suite.store)

    def test_readme(self):
        """The Python blocks, one script; then the bridge's lines with the addresses of this suite."""
        for name in ("ca.pem", "client.pem", "client.key", "token"):
            (self.checkout / name).write_text("")
        script = self.folder / "readme.py"
        script.write_text("\n".join(blocks("python")))
        output = run(self.python, script, cwd=self.checkout)
        self.assertIn("2 plus 3 is 99", output)
        self.assertIn("report", output)

        bridge, curl = re.findall(r"^\$ (.*?)(?=^\$|\Z)", blocks("console")[-1], re.MULTILINE | re.DOTALL)
        bridge = bridge.replace("127.0.0.1:50052", self.suite.services()["reward"]["address"]).replace(":8500", ":0")
        with Bridge(bridge.replace("python", str(self.python), 1)) as address:
            answer = run("bash", "-c", curl.replace("127.0.0.1:8500", address))
        self.assertRegex(answer, r'^{"rewards": \[-?[\d.]+\], "scores": \[-?[\d.]+\], "extra_logs": {}}$')

    def test_types(self):
        run(self.python, "-m", "mypy", "-p", "almost", "--config-file", SOURCE / "clients/python/pyproject.toml",
            "--cache-dir", self.folder / "mypy", cwd=self.folder)

    def test_an_editable_install_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "editable install has none: pip install"):
            run(self.python, "-m", "pip", "install", "-q", "--no-index", "--find-links", os.environ["PYTHON_CLIENT_WHEELS"],
                "-e", self.folder / "source/clients/python")

    def test_calls(self):
        run(self.python, "-B", SOURCE / "tests/integration/python_client_calls.py", self.suite.store, BIN, cwd=self.checkout)


class Bridge:
    """with Bridge(command) as address: the bridge's console line at work."""

    def __init__(self, command):
        self._command = command

    def __enter__(self):
        self._process = subprocess.Popen(shlex.split(self._command), stderr=subprocess.PIPE, text=True)
        return re.fullmatch(r"listening on http://(\S+)\n", self._process.stderr.readline())[1]

    def __exit__(self, *error):
        self._process.terminate()
        self._process.stderr.close()
        if self._process.wait(30) != 0:
            raise AssertionError(f"the bridge ended with {self._process.returncode}")


if __name__ == "__main__":
    unittest.main()
