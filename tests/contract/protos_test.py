"""The protos pass buf's linter with proto/buf.yaml: names, packages, and a comment on everything."""

import os
import pathlib
import subprocess
import tempfile
import unittest

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto"


class Protos(unittest.TestCase):
    def test_linter_finds_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            image = pathlib.Path(folder) / "image.binpb"
            # buf would look for google/rpc in a registry; protoc has it on disk.
            subprocess.run([os.environ["PROTOC"], "-I.", "-I" + os.environ["GOOGLEAPIS"], "--include_imports",
                            "--include_source_info", f"--descriptor_set_out={image}",
                            *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))],
                           cwd=PROTOS, check=True)
            lint = subprocess.run([os.environ["BUF"], "lint", str(image), "--config", "buf.yaml", "--path", "almost"],
                                  cwd=PROTOS, capture_output=True, text=True)
        self.assertEqual((lint.returncode, lint.stdout, lint.stderr), (0, "", ""))


if __name__ == "__main__":
    unittest.main()
