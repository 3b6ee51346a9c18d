"""The names of the files in a run's folder, and their JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.data.whole import clear_killed, replacing

RESULTS_FILE, OUTPUTS_FILE, CALIBRATION_FILE = "results.json", "outputs.npz", "calibration.json"
LOG_FILE = "log.txt"  # what commands printed
EXPORTED_FILE, EXPORTING_FILE = "exported.json", "exporting.json"  # see exported.py
Json = dict[str, Any]


def with_suffix(path: Path, suffix: str) -> Path:
    """results.json → results-energy.json for the suffix "-energy"; the same path for an empty one."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


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
    clear_killed(path)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
