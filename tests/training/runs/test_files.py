"""Files of a run: JSON without NaN, and a file that is replaced completely or not at all."""

import json
import math

import numpy as np
import pytest

from training.runs import files


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
