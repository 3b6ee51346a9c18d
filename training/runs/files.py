"""The names of the files in a run's folder, and how a file is written: completely or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RESULTS_FILE, OUTPUTS_FILE, CALIBRATION_FILE = "results.json", "outputs.npz", "calibration.json"
LOG_FILE = "log.txt"  # what commands printed
EXPORTED_FILE = "exported.json"  # which bundle was last made of the run
Json = dict[str, Any]


def with_suffix(path: Path, suffix: str) -> Path:
    """results.json → results-energy.json for the suffix "-energy"; the same path for an empty one."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, which takes the place of `path` if nothing goes wrong."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_killed(path: Path) -> None:
    """Remove the temporary names of `replacing` that processes left which were killed while they wrote `path`."""
    for left in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        left.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """NaN → None, numpy numbers → Python's, all the way down."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def write_json(path: Path, content: Json) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
