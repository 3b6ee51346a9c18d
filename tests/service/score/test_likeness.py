"""tailguard score --neighbours and --embedding, in every form of output, against what the service answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.__main__ import main
from service.contract.bundle import read as read_bundle
from service.inference.neighbours import Neighbours
from service.score.likeness import Likeness
from tests.service import tiny

DIRECTION = np.array([220, 30, 30]) / np.linalg.norm([220, 30, 30])


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(tiny.photo((220, 30, 30)))
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    (tmp_path / "photos" / "c.png").write_bytes(tiny.photo((10, 20, 200)))
    return tiny.write_whole(tmp_path / "tiny" / "1")


def score(bundle: Path, out: Path, *more: str) -> int:
    photos = bundle.parent.parent / "photos"
    return main(["score", str(photos), "--bundle", str(bundle), "--out", str(out), "--threads", "1", *more])


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
        return rows
    with path.open(newline="") as file:
        return [row | {"embedding": json.loads(row["embedding"] or "null")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_of_likeness(whole: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    assert score(whole, out, "--neighbours", "2", "--embedding") == 0
    first, broken, last = read(out)
    assert (first["neighbour_1"], first["neighbour_2"]) == ("red", "red")
    assert float(first["neighbour_1_distance"]) == pytest.approx(1 - DIRECTION[0], abs=1e-4)
    np.testing.assert_allclose(first["embedding"], DIRECTION, atol=1e-5)
    assert last["neighbour_1"] == "blue"
    assert {broken[name] or None for name in ("neighbour_1", "neighbour_2_distance", "embedding")} == {None}
    assert broken["error"] == "unsupported-media"


def test_without_them_no_column_is_there_and_no_embedding_is_asked_for(whole: Path, tmp_path: Path) -> None:
    assert score(whole, tmp_path / "out.jsonl") == 0
    assert not [name for name in read(tmp_path / "out.jsonl")[0] if "neighbour" in name or name == "embedding"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--neighbours", "2"), "holds no training examples"),
        (("--embedding",), "gives none"),
    ],
)
def test_what_a_bundle_lacks(
    whole: Path, tiny_bundle: Path, tmp_path: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = whole.parent.parent / "photos"
    arguments = ["score", str(photos), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "o.csv"), *more]
    assert main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_more_neighbours_than_examples(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(whole, tmp_path / "o.csv", "--neighbours", "5") == 1
    assert "--neighbours 5: of the examples of" in capsys.readouterr().err


def test_every_form_holds_the_node_and_the_set_to_the_last_digit(whole: Path, tmp_path: Path) -> None:
    """The node's probability is a sum of doubles, which Parquet rounded to single precision."""
    pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    bundle = tiny.write_whole(tmp_path / "said" / "1", **tiny.said())
    photos = whole.parent.parent / "photos"
    for name, colour in (("d.png", (60, 61, 3)), ("e.png", (43, 60, 7))):  # refused, and told a node
        (photos / name).write_bytes(tiny.photo(colour))
    more = ["--set", "0.9", "--neighbours", "1"]
    for suffix in (".jsonl", ".parquet", ".csv"):
        assert main(["score", str(photos), "--bundle", str(bundle), "--out", str(tmp_path / f"o{suffix}"), *more]) == 0
    expected = read(tmp_path / "o.jsonl")
    assert sum(row["taxonomy"] == "warm" for row in expected) >= 2
    assert read(tmp_path / "o.parquet") == expected
    with (tmp_path / "o.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in expected
        ]


def test_an_embedding_without_direction_ends_no_run(whole: Path, tmp_path: Path) -> None:
    """A black picture, whose vector is zero here: the whole run ended there, and each that went on from it."""
    (whole.parent.parent / "photos" / "black.png").write_bytes(tiny.photo((0, 0, 0)))
    assert score(whole, tmp_path / "o.jsonl", "--neighbours", "2", "--embedding") == 0
    rows = {Path(row["path"]).name: row for row in read(tmp_path / "o.jsonl")}
    black = rows["black.png"]
    assert (black["label"], black["error"]) == ("red", None)
    assert {black[name] for name in ("neighbour_1", "neighbour_2_distance")} == {None}
    assert black["embedding"] == [0, 0, 0]
    assert rows["a.png"]["neighbour_2"] == "red"


def test_an_embedding_that_is_no_number_is_null(whole: Path) -> None:
    manifest = read_bundle(whole)
    likeness = Likeness(2, True, Neighbours(whole, manifest))
    assert list(likeness.values(manifest, np.full(3, np.nan, np.float32))) == [None] * 5
