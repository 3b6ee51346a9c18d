"""What is missing, each in one sentence, before anything begins; and what machine this is, for the results."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.settings.places import ROOT
from tests.gpu.step import Given, Json

PROBE_S = 120.0
DISK_GB, SMALL_DISK_GB = 15.0, 0.5
PINNED = ROOT / "docker" / "constraints-gpu.txt"
ONNX_RUNTIME = """
from service.inference import providers
from tests.service import tiny
providers.session(tiny.graph(), {provider!r})
"""
TORCH = "import torch, sys; sys.exit(0 if {device!r} == 'cpu' or torch.cuda.is_available() else 'it sees no GPU')"
TIMM = "from training.network import backbones; backbones.import_timm()"


class DataSet(NamedTuple):
    """The names of a CIFAR's parts below --data."""

    folder: str
    files: tuple[str, ...]
    other: str  # whose images are an OOD set, and whose own OOD sets are not for this one
    not_ood: tuple[str, ...] = ()  # sets with classes of this data set


DATA = {
    "cifar10": DataSet("cifar-10-batches-py", ("data_batch_1", "test_batch"), "cifar100"),
    "cifar100": DataSet("cifar-100-python", ("train", "test"), "cifar10", ("scenes",)),  # forest, mountain, sea
}


def outliers(data: Path) -> Path | None:
    """The array of training outliers below --data."""
    return next(iter(sorted((data / "outliers").glob("*.npy"))), None)


def ood(data: Path, name: str) -> list[Path]:
    """The OOD sets for the data set `name`: ood/*.npy, and the other CIFAR's test images where near/ holds them."""
    of = DATA[name]
    sets = [
        path for path in sorted((data / "ood").glob("*.npy"))
        if not path.stem.endswith(f"_{of.other}") and path.stem not in of.not_ood
    ]  # fmt: skip
    near = data / "near" / f"{of.other}.npy"
    return [*sets, near] if near.is_file() else sets


def missing(given: Given, names: Iterable[str]) -> dict[str, str]:
    """Of the things in `names`, those that are not there: name → one sentence with the remedy."""
    checks: Mapping[str, Callable[[Given], str | None]] = {
        "gpu": _gpu, "torch": _torch, "onnxruntime": _onnxruntime, "timm": _timm, "disk": _disk,
        **{name: partial(_data, name=name) for name in DATA},
    }  # fmt: skip
    return {name: why for name, check in checks.items() if name in names and (why := check(given))}


def _gpu(given: Given) -> str | None:
    if given.device == "cpu":
        return None
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not on the path: install NVIDIA's driver, or rehearse with --device cpu --small."
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PROBE_S)
    if done.returncode or "GPU" not in done.stdout:
        return f"nvidia-smi finds no GPU ({_said(done)}): check the driver, and that the container was given the card."
    return None


def _torch(given: Given) -> str | None:
    why = _fails(TORCH.format(device=given.device))
    return why and f"torch cannot compute on {given.device} ({why}): install the wheel that pyproject.toml pins."


def _onnxruntime(given: Given) -> str | None:
    why = _fails(ONNX_RUNTIME.format(provider=given.device))
    if why is None:
        return None
    if given.device == "cpu":
        return f"onnxruntime does not run here ({why}): pip install onnxruntime."
    pinned = next(line for line in PINNED.read_text(encoding="utf-8").splitlines() if line.startswith("onnxruntime"))
    return (
        f"onnxruntime has no CUDAExecutionProvider that works ({why}): pip uninstall onnxruntime, then pip install "
        f"'{pinned.replace('==', '[cuda,cudnn]==')}' (versions: docker/constraints-gpu.txt)."
    )


def _timm(given: Given) -> str | None:
    why = _fails(TIMM)
    return why and f"timm cannot be imported ({why}): pip install 'tailguard[backbones]'."


def _disk(given: Given) -> str | None:
    wanted = SMALL_DISK_GB if given.small else DISK_GB
    there = next(path for path in (given.out, *given.out.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free >= wanted:
        return None
    return f"{there} has {free:.1f} GB left and {wanted:g} GB are needed: make room, or name another --out."


def _data(given: Given, name: str) -> str | None:
    if given.small:  # the rehearsal trains on digits
        return None
    if given.data is None:
        return f"{name} is not there: give --data DIR, which holds {DATA[name].folder}, outliers/*.npy and ood/*.npy."
    folder = given.data / DATA[name].folder
    lacking = [str(folder / file) for file in DATA[name].files if not (folder / file).is_file()]
    lacking += [] if outliers(given.data) else [str(given.data / "outliers" / "*.npy")]
    lacking += [] if ood(given.data, name) else [str(given.data / "ood" / "*.npy")]
    return f"{name} is not whole: --data {given.data} lacks {', '.join(lacking)}." if lacking else None


def _fails(code: str) -> str | None:
    """The last line that a Python program says before it fails; None where it does not. In a process of its own, so
    that no memory of the GPU stays taken."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True,
                              timeout=PROBE_S)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_S:g} s"
    return _said(done) if done.returncode else None


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return lines[-1][:300]


def machine(device: str) -> Json:
    """CPUs, load, commit, versions, and what nvidia-smi says of the card."""
    code = (
        "import importlib.metadata as m, json\n"
        "names = ('torch', 'onnxruntime', 'onnxruntime-gpu', 'timm')\n"
        "have = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n) for n in names}))"
    )
    versions = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    card = _output(query) if device == "cuda" else None
    return {
        "card": card, "cpus": len(os.sched_getaffinity(0)), "load_average_before": round(os.getloadavg()[0], 2),
        "commit": _output(["git", "rev-parse", "--short", "HEAD"]), "versions": json.loads(versions.stdout),
    }  # fmt: skip


def _output(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PROBE_S)
    except OSError:
        return None
    return done.stdout.strip() or None
