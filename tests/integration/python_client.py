"""The Python client, installed as its users install it."""

import os
import shutil
import subprocess
import sys

from suite import SOURCE


def run(*command, **options):
    """What the command printed; AssertionError with it if it failed."""
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                          **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def install(folder, *more):
    """Builds the wheel and installs it, and `more`, into an environment in `folder`, offline; returns its python."""
    wheels = os.environ["PYTHON_CLIENT_WHEELS"]  # deploy/setup --full
    pip = ("-q", "--disable-pip-version-check", "--no-index", "--find-links", wheels)
    # From a copy, since setuptools builds inside the source: and from no more than setup.py says it reads.
    source = folder / "source"
    for path in ("clients/python", "clients/service_config.json", "proto", "deploy/versions.env", "CMakeLists.txt"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (SOURCE / path).is_dir() else shutil.copy
        copy(SOURCE / path, source / path)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "wheel", *pip, "--no-deps", "-w", folder, source / "clients/python")
    run(python, "-m", "pip", "install", *pip, *folder.glob("almost-*.whl"), *more)
    return python
