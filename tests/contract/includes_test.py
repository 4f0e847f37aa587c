"""Which folder may include what, directly or through our own headers.

main -> rpc -> core <- torch: the core of a service knows neither LibTorch nor gRPC, the two meet only in main.cc,
services never include one another, and what must stay small (simulator, orchestrator, clients) never sees LibTorch.
"""

import functools
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PROTO = re.compile(r"^(grpc|grpcpp|google/protobuf)/|\.pb\.h$")
GRPC = re.compile(r"^(grpc|grpcpp)/|\.grpc\.pb\.h$")

# Folder -> what its files may not reach. `*` stands for one folder.
FORBIDDEN = {
    "common/base": (TORCH, PROTO),
    "common/kernels": (TORCH, PROTO),
    "common/text": (TORCH, PROTO),
    "common/storage": (TORCH, PROTO),
    "common/world": (TORCH, PROTO),
    "common/evaluation": (TORCH, PROTO),
    "common/page": (TORCH, PROTO),
    "common/model": (PROTO,),
    "common/engine": (PROTO,),
    "common/logging": (TORCH,),
    "common/metrics": (TORCH,),
    "common/config": (TORCH,),
    "common/rpc": (TORCH,),
    **{f"services/{service}/core": (TORCH, PROTO) for service in ("generation", "simulator", "trainer")},
    # A recipe is a message, and so is what the orchestrator asks of others.
    "services/orchestrator/core": (TORCH, GRPC),
    "services/*/torch": (PROTO,),
    "services/*/rpc": (TORCH,),
    "services/simulator": (TORCH,),
    "services/orchestrator": (TORCH,),
    "clients": (TORCH,),
}


def sources():
    tracked = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.h", "*.cc"],
                             cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in tracked.split("\0") if path and (ROOT / path).exists()]


@functools.cache
def includes(path):
    return [name for _, name in INCLUDE.findall((ROOT / path).read_text())]


@functools.cache
def reached(path):
    """Every include that `path` sees, as {include: chain of our files that leads to it}."""
    seen, todo = {}, [(path, (path,))]
    visited = {path}
    while todo:
        file, chain = todo.pop()
        for name in includes(file):
            seen.setdefault(name, chain)
            if name not in visited and (ROOT / name).is_file():
                visited.add(name)
                todo.append((name, chain + (name,)))
    return seen


def within(path, folder):
    return pathlib.PurePath(*pathlib.PurePath(path).parts[: folder.count("/") + 1]).match(folder)


class Includes(unittest.TestCase):
    def test_folders_reach_only_what_they_may(self):
        wrong = []
        for path in sources():
            for folder, patterns in FORBIDDEN.items():
                if not within(path, folder):
                    continue
                for name, chain in reached(path).items():
                    if any(pattern.search(name) for pattern in patterns):
                        wrong.append(f"{' -> '.join(chain)} -> {name}: not for {folder}")
        self.assertEqual(wrong, [])

    def test_every_folder_with_a_rule_has_sources(self):
        self.assertEqual([folder for folder in FORBIDDEN if not any(within(path, folder) for path in sources())], [])

    def test_services_never_include_one_another(self):
        wrong = [f"{path} includes {name}" for path in sources() for name in includes(path)
                 if name.startswith("services/") and not within(path, "/".join(name.split("/")[:2]))
                 and not path.startswith("tests/")]
        self.assertEqual(wrong, [])

    def test_common_includes_only_common(self):
        wrong = [f"{path} includes {name}" for path in sources() if path.startswith("common/")
                 for name in includes(path) if re.match(r"(services|clients|tests)/", name)]
        self.assertEqual(wrong, [])

    def test_our_headers_are_named_from_the_root(self):
        wrong = [f'{path} includes "{name}"' for path in sources()
                 for bracket, name in INCLUDE.findall((ROOT / path).read_text())
                 if bracket == '"' and name.endswith(".h") and (ROOT / path).parent.joinpath(name).is_file()
                 and not (ROOT / name).is_file()]
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
