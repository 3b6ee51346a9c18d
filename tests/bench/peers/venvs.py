"""A virtual environment per peer, with the numpy, Pillow and onnxruntime of this one; never CUDA packages."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SHARED = ("onnxruntime", "numpy", "pillow", "pydantic")
CONSTRAINTS = ("torch==2.13.0",)
CUDA = re.compile(r"nvidia-.+-cu\d*|nvidia-c.+|triton|cuda-.+")  # nvidia-ml-py only asks the driver, and is small
MARKER = "tailguard-bench.json"


class Unavailable(Exception):
    """A peer cannot be installed here; the message says why."""


def ready(folder: Path, name: str, packages: tuple[str, ...]) -> Path:
    """The Python of the venv `folder`/`name` that holds `packages`, made now unless it is there. Raises Unavailable."""
    home = folder / name
    python = home / "bin" / "python"
    wanted = [*packages, *(f"{package}=={version(package)}" for package in SHARED)]
    if (home / MARKER).exists() and json.loads((home / MARKER).read_text()) == wanted:
        return python
    _run([sys.executable, "-m", "venv", str(home)])
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(CONSTRAINTS) + "\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", str(constraints)]
    plan = json.loads(_run([*pip, "--dry-run", "--report", "-", *wanted]))
    cuda = [name for item in plan["install"] if CUDA.fullmatch(name := item["metadata"]["name"].lower())]
    if cuda:
        raise Unavailable(f"it would bring CUDA packages: {', '.join(sorted(cuda))}")
    _run([*pip, *wanted])
    (home / MARKER).write_text(json.dumps(wanted))
    return python


def version_in(python: Path, package: str) -> str:
    """The version of a package in another environment."""
    return _run([str(python), "-c", f"from importlib.metadata import version; print(version({package!r}))"]).strip()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-300:]]
        raise Unavailable(" ".join(errors)[:500] or f"{command[0]} ended with {done.returncode}")
    return done.stdout
