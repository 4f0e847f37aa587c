"""What holds for the tracked files as a whole."""

import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
                         cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / path for path in out.split("\0") if path and (ROOT / path).is_file()]


def text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


class Tree(unittest.TestCase):
    def test_every_service_explains_itself(self):
        missing = [str((main.parent / "README.md").relative_to(ROOT)) for main in tracked("services/*/main.cc")
                   if not (main.parent / "README.md").is_file()]
        self.assertEqual(missing, [])

    def test_no_path_of_one_machine(self):
        paths = re.compile(r"(?<![\w.$}~-])/(root|work|home|Users)/\w")
        found = [f"{path.relative_to(ROOT)}: {match.group(0)}" for path in tracked()
                 if path != pathlib.Path(__file__).resolve()
                 for match in paths.finditer(text(path))]
        self.assertEqual(found, [])

    def test_what_tests_write_is_their_own_and_goes_with_them(self):
        found = [str(path.relative_to(ROOT)) for path in tracked("*_test.cc", "*_fixture.h", "tests/robustness/*.cc")
                 if re.search(r"\bTempDir\(|temp_directory_path\(", text(path))]
        self.assertEqual(found, [], "use common/base/scratch_folder.h")

    def test_versions_are_pinned_in_one_file(self):
        home = ROOT / "deploy/versions.env"
        versions = dict(re.findall(r"^([A-Z_]+)=(\d+(?:\.\d+)+)$", text(home), re.MULTILINE))
        self.assertTrue(versions)
        builds = tracked("*.cmake", "CMakeLists.txt", "*/CMakeLists.txt", "deploy/*", "tests/run", ".ci/*", "k8s/*")
        found = [f"{path.relative_to(ROOT)}: {version} is {name}" for path in builds if path.resolve() != home
                 for name, version in versions.items()
                 if re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", text(path))]
        self.assertEqual(found, [])


if __name__ == "__main__":
    unittest.main()
