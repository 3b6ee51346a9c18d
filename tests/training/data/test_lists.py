"""Lists of photographs: CSV, JSON lines and Parquet give the same parts; faults are named with their row."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from training.data import lists
from training.data.photographs import read_parts
from training.data.readers import DataError

ROWS = [
    {"path": "a/1.png", "label": "ant", "split": "train", "visit": "v1"},
    {"path": "a/2.png", "label": "ant", "split": "train", "visit": "v1"},
    {"path": "b/1.png", "label": "bee", "split": "training", "visit": "v2"},
    {"path": "/else/where.png", "label": "bee", "split": "Valid", "visit": ""},
    {"path": "c.png", "label": "ant", "split": "test", "visit": "v3"},
]


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a byte order mark
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        arrow = pytest.importorskip("pyarrow", reason="Parquet is an extra")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", lists.SUFFIXES)
def test_parts_labels_and_columns(tmp_path, suffix):
    parts = lists.read_list(write(tmp_path / f"list{suffix}", ROWS)).parts
    train, val, test = parts["train"], parts["val"], parts["test"]
    assert train.paths == [f"{tmp_path}/a/1.png", f"{tmp_path}/a/2.png", f"{tmp_path}/b/1.png"]
    assert train.classes == val.classes == test.classes == ("ant", "bee")
    assert train.labels.tolist() == [0, 0, 1]
    assert train.columns == {"visit": ["v1", "v1", "v2"]}
    assert (val.paths, val.labels.tolist()) == (["/else/where.png"], [1])
    assert test.take([0]).columns == {"visit": ["v3"]}


@pytest.mark.parametrize("suffix", lists.SUFFIXES)
def test_without_a_split_all_is_for_training(tmp_path, suffix):
    rows = [{"path": r["path"], "label": r["label"]} for r in ROWS]
    parts = lists.read_list(write(tmp_path / f"list{suffix}", rows)).parts
    assert parts.keys() == {"train"}
    assert parts["train"].counts.tolist() == [3, 2]


def test_columns_that_some_rows_lack(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a", "label": 1}\n{"path": "b", "label": 1, "day": 7}\n{"path": "c", "label": 2}\n')
    train = lists.read_list(path).parts["train"]
    assert train.classes == ("1", "2")
    assert train.columns == {"day": ["", "7", ""]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,class\nx.png,ant\n", r"row 1 has no path; it has \['class', 'file'\]"),
        ("a.csv", "path,label\nx.png,ant\ny.png,\n", r"row 2 has no label"),
        ("a.csv", "path,label,split\nx.png,ant,dev\n", r"row 1 has the split 'dev': use train, val, test"),
        ("a.csv", "path,label,split\nx.png,ant,test\n", r"has no row of the split train"),
        ("a.csv", "", r"has no row of the split train"),
        ("a.jsonl", '{"path": "x.png"', r"cannot be read as JSONL"),
        ("a.jsonl", '{"path": ' + "[" * 100_000, r"cannot be read as JSONL"),
        ("a.jsonl", '["x.png", "ant"]\n', r"line 1 is no JSON object"),
        ("a.parquet", "PAR1 it is not", r"cannot be read as PARQUET"),
        ("a.csv", b"path,label\n\xff\xfe,ant\n", r"is not in UTF-8 .*: save it in that encoding"),
        (
            "a.csv",
            "file;class;g\nx.png;ant;1,5\n",
            r"row 1 has no path; it has \['class', 'file', 'g'\]: call the .* 'path'",
        ),
        ("a.csv", "path|label\nx.png|ant\n", r"row 1 has no path; it has \['path\|label'\]"),
        ("a.csv", "path,label\nx.png,ant\ny.png,ant, red\n", r"row 2 has more fields than .*\( red\): put a text"),
        ("a.csv", "path,label\nx.png,ant\ny.png,  \n", r"row 2 has no label"),
        ("a.jsonl", '{"path": "x.png", "label": ["ant"]}\n', r"row 1 has the label \['ant'\], which is no text"),
        ("a.jsonl", '{"path": "x.png", "label": NaN}\n', r"row 1 has the label nan, which is no text"),
        ("a.csv", "path,label,path\nx.png,ant,y.png\n", r"has two columns 'path': remove one"),
        ("a.jsonl", '{"path": {"bytes": ""}, "label": 1}\n', r"row 1 has the path {'bytes': ''}, which is no text"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        lists.read_list(path)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_columns_between_semicolons_or_tabs_as_excel_writes_them(tmp_path, mark, quote):
    rows = (("Path", "Label", "height, m"), ("DCIM\\1.JPG", "roe, deer ", "1,5"), ("2.JPG", "fox", "0,5"))
    lines = (mark.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    (tmp_path / "list.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig", newline="")
    train = lists.read_list(tmp_path / "list.csv").parts["train"]
    assert train.paths == [f"{tmp_path}/DCIM/1.JPG", f"{tmp_path}/2.JPG"]
    assert (train.classes, train.columns) == (("fox", "roe, deer"), {"height, m": ["1,5", "0,5"]})


def test_semicolons_within_a_list_of_commas_are_text(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,a; b; c; d\n1.png,x; y,1; 2\n")
    train = lists.read_list(tmp_path / "list.csv").parts["train"]
    assert (train.classes, train.columns) == (("x; y",), {"a; b; c; d": ["1; 2"]})


def test_a_class_in_two_spellings_is_named(tmp_path):
    labels = ("Sea Slug", "sea_slug", "sea  slug", "ant", "ſea slug", "slug")
    rows = [{"path": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    notes = read_parts(write(tmp_path / "list.csv", rows)).notes
    assert len(notes) == 1
    assert "'Sea Slug' and 'sea  slug' and 'sea_slug' and 'ſea slug'" in notes[0]
    assert "ant" not in notes[0]


def test_a_class_in_two_spellings_is_named_in_folders_too(tmp_path):
    for name in ("Cat", "cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert any("'Cat' and 'cat'" in note for note in read_parts(tmp_path).notes)
    (tmp_path / "Cat").rename(tmp_path / "cow")
    assert not any("cat" in note for note in read_parts(tmp_path).notes)


def test_labels_stay_the_text_that_they_are(tmp_path):
    labels = ("NA", "None", "nan", "01", "1", "1.0", "true", "0")
    rows = [{"path": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    assert set(lists.read_list(write(tmp_path / "list.csv", rows)).parts["train"].classes) == set(labels)


def test_a_comma_at_the_end_of_a_row_is_no_field(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.png,ant,\nb.png,bee\n")
    train = lists.read_list(tmp_path / "list.csv").parts["train"]
    assert (train.classes, train.columns) == (("ant", "bee"), {})


@pytest.mark.parametrize("suffix", lists.SUFFIXES)
def test_names_of_columns_are_taken_in_any_letter_case(tmp_path, suffix):
    rows = [{" Path": r["path"], "LABEL": r["label"], "Split ": r["split"], "Visit": r["visit"]} for r in ROWS]
    parts = lists.read_list(write(tmp_path / f"list{suffix}", rows)).parts
    assert {part: len(listing.paths) for part, listing in parts.items()} == {"train": 3, "val": 1, "test": 1}
    assert parts["train"].columns == {"Visit": ["v1", "v1", "v2"]}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_whole_numbers_stay_whole_where_pandas_makes_floats_of_them(tmp_path, suffix):
    rows = [{"path": "a", "label": 1.0, "day": 7.0}, {"path": "b", "label": 2.5, "day": float("nan")},
            {"path": "c", "label": 1.0}, {"path": "d", "label": float("nan"), "kind": "outlier"}]  # fmt: skip
    path = write(tmp_path / f"list{suffix}", [{"kind": "label", "day": None} | row for row in rows])
    train = lists.read_list(path).parts["train"]
    assert train.classes == ("1", "2.5")
    assert train.columns["day"] == ["7", "", ""]  # an image without a group stands alone
    assert lists.outliers(path) == [str(tmp_path / "d")]


def test_blanks_are_no_group(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,visit\na,ant,  \nb,ant, v1 \nc,bee\n")
    assert lists.read_list(tmp_path / "list.csv").parts["train"].columns == {"visit": ["", "v1", ""]}


def test_an_image_that_is_listed_again_counts_once(tmp_path, monkeypatch):
    paths = ["a.png", "a.png", "./a.png", str(tmp_path / "a.png"), "b.png", "b.png"]
    rows = [{"path": path, "label": "bee" if path == "b.png" else "ant", "visit": str(i)}
            for i, path in enumerate(paths)]  # fmt: skip
    rows[-1]["label"] = "ant"  # two labels of an image are said later
    found = lists.read_list(write(tmp_path / "list.csv", rows))
    assert found.parts["train"].classes == ("ant", "bee")
    assert found.parts["train"].counts.tolist() == [2, 1]
    assert found.parts["train"].columns == {"visit": ["0", "4", "5"]}
    assert any("3 rows name an image of a class and a split once more" in note for note in found.notes)
    monkeypatch.chdir(tmp_path)
    assert lists.read_list(Path("list.csv")).parts["train"].counts.tolist() == [2, 1]


def test_paths_as_windows_writes_them(tmp_path):
    (tmp_path / "shelf").mkdir()
    for name in ("shelf/1.png", "od\\d.png"):
        (tmp_path / name).touch()
    rows = [{"path": path, "label": "ant"} for path in ("shelf\\1.png", "od\\d.png", "shelf/1.png")]
    train = lists.read_list(write(tmp_path / "list.csv", rows)).parts["train"]
    assert train.paths == [f"{tmp_path}/shelf/1.png", f"{tmp_path}/od\\d.png"]
