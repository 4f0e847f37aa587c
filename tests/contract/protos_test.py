"""The protos pass buf's linter with proto/buf.yaml, and break no client of the latest release (before the first: of the commit before)."""

import io
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTOS = ROOT / "proto"


def git(*arguments):
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True)
    return done.stdout if done.returncode == 0 else None


def buf(*arguments):
    done = subprocess.run([os.environ["BUF"], *arguments, "--config", PROTOS / "buf.yaml"], cwd=PROTOS, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class Protos(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def compile(self, name, protos=PROTOS):
        """An image of them. buf would look for google/rpc in a registry; protoc has it on disk."""
        image = self.folder / f"{name}.binpb"
        subprocess.run([os.environ["PROTOC"], "-I.", "-I" + os.environ["GOOGLEAPIS"], "--include_imports", "--include_source_info",
                        f"--descriptor_set_out={image}", *sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))],
                       cwd=protos, check=True)
        return image

    def breaking(self, new, old):
        return buf("breaking", new, "--against", old, "--path", "almost")

    def test_linter_finds_nothing(self):
        self.assertEqual(buf("lint", self.compile("new"), "--path", "almost"), (0, ""))

    def test_they_break_no_client(self):
        release = git("describe", "--tags", "--match=v*", "--abbrev=0")
        before = git("archive", release.decode().strip() if release else "HEAD^", "proto")
        if before is None:
            self.skipTest("git knows no release and no commit before this one")
        tarfile.open(fileobj=io.BytesIO(before)).extractall(self.folder)
        self.assertEqual(self.breaking(self.compile("new"), self.compile("old", self.folder / "proto")), (0, ""))

    def test_a_field_that_goes_or_changes_its_type_is_a_break(self):
        protos = self.folder / "proto"
        shutil.copytree(PROTOS, protos)
        reward = protos / "almost/reward/v1/reward.proto"
        text = reward.read_text()
        for broken in (text.replace("  double raw_score = 1;\n", ""), text.replace("  double raw_score", "  float raw_score")):
            self.assertNotEqual(broken, text)
            reward.write_text(broken)
            status, output = self.breaking(self.compile("broken", protos), self.compile("old"))
            self.assertNotEqual(status, 0)
            self.assertIn("raw_score", output)


if __name__ == "__main__":
    unittest.main()
