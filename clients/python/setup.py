"""Makes the stubs of every proto while the wheel is built; they are nowhere committed.

Versions, protos and the service config are read from their homes elsewhere in the repository, so build from a checkout:
`pip wheel clients/python`, or `pip install "git+URL#subdirectory=clients/python"`.
"""

import pathlib
import re
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VERSIONS = dict(re.findall(r"^(\w+)=(\S+)$", (REPOSITORY / "deploy/versions.env").read_text(), re.MULTILINE))
VERSION = re.search(r"^project\(almost VERSION (\S+)", (REPOSITORY / "CMakeLists.txt").read_text(), re.MULTILINE)[1]


class BuildWithStubs(build_py):
    def run(self):
        if self.editable_mode:  # setuptools swallows exceptions here
            raise SystemExit("the stubs are made for the wheel, and an editable install has none: pip install ./clients/python")
        super().run()
        from google.rpc import __path__ as google_rpc
        from grpc_tools import _proto, protoc

        out, protos = pathlib.Path(self.build_lib), REPOSITORY / "proto"
        files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
        if protoc.main(["protoc", f"-I{protos}", f"-I{pathlib.Path(list(google_rpc)[0]).parents[1]}",
                        f"-I{list(_proto.__path__)[0]}", f"--python_out={out}", f"--pyi_out={out}",
                        f"--grpc_python_out={out}", *files]) != 0:
            raise RuntimeError("protoc failed")
        for stub in out.glob("almost/*/**/*_pb2.py"):
            (stub.parent / "__init__.py").touch()
            (stub.parents[1] / "__init__.py").touch()
        shutil.copy(REPOSITORY / "clients/service_config.json", out / "almost")


setup(
    version=VERSION,
    cmdclass={"build_py": BuildWithStubs},
    setup_requires=[f"grpcio-tools=={VERSIONS['GRPCIO_VERSION']}",
                    f"googleapis-common-protos=={VERSIONS['GOOGLEAPIS_COMMON_PROTOS_VERSION']}"],
    install_requires=[f"grpcio>={VERSIONS['GRPCIO_VERSION']}", "protobuf>=6.31.1,<8", "googleapis-common-protos>=1.66",
                      "PyYAML>=6"],
)
