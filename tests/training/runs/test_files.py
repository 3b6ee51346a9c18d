"""Files of a run: JSON without NaN, and a file that is replaced completely or not at all."""

import json
import math
import os
import resource

import numpy as np
import pytest
import torch

from tests.training import tiny
from training.data import whole
from training.runs import checkpoint, files


def test_jsonable_converts_numpy_numbers_and_nan():
    given = {1: (np.float32(0.5), math.nan), "n": np.int64(3), "deep": [{"x": np.float64("nan")}], "t": "text"}
    converted = files.jsonable(given)
    assert converted == {"1": [0.5, None], "n": 3, "deep": [{"x": None}], "t": "text"}
    assert type(converted["n"]) is int
    assert type(converted["1"][0]) is float


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_what_a_killed_process_left_is_removed_and_nothing_of_a_living_one(tmp_path):
    """A trainer removed the checkpoint that another was writing in the same folder, which then ended in a traceback."""
    gone, alive = tiny.ended(), os.getpid()
    names = [f".results.{gone}.json", f".results.{alive}.json", f".results-energy.{gone}.json", ".results.1e3.json"]
    for name in names:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f".checkpoint.{gone}.pt").write_text("half")  # just now: it may be of another machine
    whole.clear_killed(tmp_path / "results.json")
    whole.clear_killed(tmp_path / "checkpoint.pt")
    assert {p.name for p in tmp_path.iterdir()} == {*names[1:], f".checkpoint.{gone}.pt"}
    files.write_json(tmp_path / "results-energy.json", {})
    assert not (tmp_path / names[2]).exists()


def test_a_checkpoint_on_a_full_disk_is_an_error_that_says_so(tmp_path):
    """torch makes a RuntimeError of it, "unexpected pos", which ended a run in a traceback."""
    checkpoint.save(tmp_path, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, {"epoch": 2, "network": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(tmp_path) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 1
