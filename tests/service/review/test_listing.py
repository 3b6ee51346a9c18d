"""Labels of scored files come back as a list that training reads: score → a person in the tool → review import."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import __main__ as commands
from service.review import listing
from tests.service import tiny
from training.audit.sources import _unlabelled
from training.data import lists, photographs
from training.data.listing import Listing
from training.data.readers import DataError
from training.learn import reviewed

COLOURS = {
    "a red & blue.png": (220, 30, 30), "sub/ünï.png": (30, 220, 30), "c+d#%.png": (10, 10, 220),
    "dark.png": (0, 0, 0), "grey.png": (90, 90, 90),
}  # fmt: skip
SAID = {"a red & blue.png": "red", "sub/ünï.png": "Sea Slug/Young", "c+d#%.png": "Outlier", "dark.png": "not sure"}
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(tiny.photo(colour))
    return tmp_path / "photos"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """`tailguard` with these arguments: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = commands.main([*map(str, arguments)], "tailguard")
        return status, *capsys.readouterr()

    return run


def name_of(path: object) -> str:
    """'sub/a.png' of …/photos/sub/a.png."""
    return str(path).partition("photos/")[2]


def annotated(tasks: Any, said: dict[str, str]) -> Any:
    """What Label Studio exports as JSON once somebody has worked through most tasks."""
    for number, task in enumerate(tasks, start=1):
        task |= {"id": number, "annotations": [], "inner_id": number, "total_annotations": 0, "meta": {}}
        if label := said.get(name_of(task["data"]["path"])):
            chosen = {"id": "x", "from_name": "choice", "to_name": "image", "type": "choices", "origin": "manual",
                      "value": {"choices": [label]}}  # fmt: skip
            task["annotations"] = [{"id": number, "completed_by": 1, "was_cancelled": False, "result": [chosen]}]
    return tasks


def minimal(tasks: Any, said: dict[str, str]) -> Any:
    """The same as JSON-MIN."""
    found = []
    for number, task in enumerate(tasks, start=1):
        chosen = {"choice": said[name]} if (name := name_of(task["data"]["path"])) in said else {}
        found.append(task["data"] | chosen | {"id": number, "annotator": 1, "updated_at": "2026-01-01T00:00:00Z"})
    return found


def looked_at(found: Any, said: dict[str, str]) -> Any:
    """What FiftyOne writes once somebody has filled ground_truth."""
    for sample in found["samples"]:
        if label := said.get(name_of("photos/" + sample["filepath"].partition("photos/")[2])):
            sample["ground_truth"] = {"_cls": "Classification", "label": label}
    return found


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("form", "worked"),
    [("label-studio", annotated), ("label-studio", minimal), ("fiftyone", looked_at)],
    ids=["label-studio", "json-min", "fiftyone"],
)
def test_what_was_scored_and_labelled_is_what_training_reads(
    form: str, worked: Any, suffix: str, photos: Path, tiny_bundle: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos.parent
    monkeypatch.chdir(folder)
    scored, labels, out = folder / "tasks.json", folder / "labels.json", folder / f"list.{suffix}"
    assert say("score", "photos", "--out", scored, "--format", form, "--bundle", tiny_bundle)[0] == 0
    labels.write_text(json.dumps(worked(json.loads(scored.read_text()), SAID)))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    status, printed, errors = say("review", "import", labels, "--out", out, "--reviewer", "eva")
    assert (status, errors) == (0, "")
    assert printed == f"written: {out}, 3 images, 1 of them outliers; 2 entries have no label\n"
    assert {p.name for p in folder.iterdir() if "partial" in p.name} == set()
    parts = lists.read_list(out)
    train = parts.parts["train"]
    assert {name_of(p): train.classes[c] for p, c in zip(train.paths, train.labels.tolist(), strict=True)} == {
        "a red & blue.png": "red", "sub/ünï.png": "Sea Slug/Young"
    }  # fmt: skip
    assert set(train.columns["source"]) == {"import"}
    assert set(train.columns["reviewer"]) == {"eva"}
    assert parts.notes == [f"{out}: 1 rows are outliers, in no class: --outliers {out} trains on them"]
    learned = reviewed.read(out, ["red"], folder / "scan.npz", notes := [])
    assert {name_of(p): label for p, label in zip(learned.paths, learned.labels.tolist(), strict=True)} == {
        "a red & blue.png": "red", "sub/ünï.png": "Sea Slug/Young", "c+d#%.png": ""
    }  # fmt: skip
    assert notes == []
    outside = photographs._outlier_source(out, [])
    assert isinstance(outside, Listing)
    assert outside.paths == [str(photos / "c+d#%.png")]
    assert _unlabelled("outliers", out, 8).paths == [str(photos / "c+d#%.png")]


def test_outliers_alone_can_be_learned(photos: Path, say: Say, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"grey.png": "outlier", "dark.png": "outliers"}}))
    given = ("--out", tmp_path / "list.csv", "--image-root", photos)
    assert say("review", "import", tmp_path / "labels.json", *given)[0] == 0
    learned = reviewed.read(tmp_path / "list.csv", ["red"], tmp_path / "scan.npz", [])
    assert sorted(map(name_of, learned.paths)) == ["dark.png", "grey.png"]
    assert learned.outliers.all()


def test_with_a_bundle_a_new_class_is_told_from_a_known_one(
    photos: Path, tiny_bundle: Path, say: Say, tmp_path: Path
) -> None:
    given = {"samples": [
        {"filepath": str(photos / name), "ground_truth": {"_cls": "Classification", "label": label}}
        for name, label in {"grey.png": "RED", "dark.png": "sea slug", "c+d#%.png": "outlier"}.items()
    ]}  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(given))
    out = tmp_path / "list.csv"
    status, printed, _ = say("review", "import", tmp_path / "labels.json", "--out", out, "--bundle", tiny_bundle)
    assert status == 0
    assert "3 images, 1 of them outliers, 1 of new ones; 0 entries" in printed
    with out.open() as file:
        rows = {name_of(row["path"]): (row["label"], row["kind"]) for row in csv.DictReader(file)}
    assert rows == {"grey.png": ("red", "class"), "dark.png": ("sea slug", "new"), "c+d#%.png": ("", "outlier")}


@pytest.mark.parametrize("form", ["label-studio", "fiftyone"])
def test_an_image_root_is_that_of_the_scores(form: str, photos: Path, tiny_bundle: Path, say: Say) -> None:
    """The tree has moved since: no name leads to the files but through the root."""
    folder, root = photos.parent, ("--image-root", photos.parent)
    assert say("score", photos, "--out", folder / "t.json", "--format", form, "--bundle", tiny_bundle, *root)[0] == 0
    worked = {"label-studio": annotated, "fiftyone": looked_at}[form](json.loads((folder / "t.json").read_text()), SAID)
    (folder / "labels.json").write_text(json.dumps(worked))
    (folder / "moved").mkdir()
    photos.rename(folder / "moved" / "photos")
    status, _, errors = say("review", "import", folder / "labels.json", "--out", folder / "list.csv")
    assert status == 1
    assert "2 files are not here" not in errors
    assert "3 files are not here, see --image-root" in errors
    assert "has no label of a file that is here: nothing is written" in errors
    moved = ("--image-root", folder / "moved")
    assert say("review", "import", folder / "labels.json", "--out", folder / "list.csv", *moved)[0] == 0
    assert all(Path(p).is_file() for p in lists.read_list(folder / "list.csv").parts["train"].paths)


def test_fiftyones_names_without_suffix_are_found(photos: Path, say: Say, tmp_path: Path) -> None:
    labels = {"classes": ["cat", "dog"], "labels": {"grey": 0, "dark": 1, "sub/ünï": 1, "none": 1}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    status, _, errors = say(
        "review", "import", tmp_path / "labels.json", "--out", tmp_path / "l.csv", "--image-root", photos
    )
    assert (status, errors) == (0, "1 files are not here, see --image-root: none\n")
    assert sorted(map(name_of, lists.read_list(tmp_path / "l.csv").parts["train"].paths)) == [
        "dark.png", "grey.png", "sub/ünï.png"
    ]  # fmt: skip


def test_a_name_that_is_no_text_goes_into_json_lines_alone(say: Say, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.png")
    odd.write_bytes(tiny.photo((1, 2, 3)))
    tasks = [{"image": f"/data/local-files/?d={str(tmp_path)[1:]}/%FF.png", "path": "\\xff.png", "choice": "cat"}]
    (tmp_path / "labels.json").write_text(json.dumps(tasks))
    status, _, errors = say("review", "import", tmp_path / "labels.json", "--out", tmp_path / "list.csv")
    assert status == 1
    assert "name the list .jsonl" in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", odd.name]
    assert say("review", "import", tmp_path / "labels.json", "--out", tmp_path / "list.jsonl")[0] == 0
    assert lists.read_list(tmp_path / "list.jsonl").parts["train"].paths == [str(odd)]


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        ({"grey": "cat", "dark": "Cat"}, (), "two classes are called 'Cat' and 'cat': write them alike"),
        ({"grey": "  ", "dark": "cat"}, (), "give it a name"),
        ({"grey": "cat", "grey.png": "dog"}, (), "grey.png is said to show 'cat' and 'dog': give it one label"),
        ({"grey": "../etc"}, ("--bundle", "BUNDLE"), "no folder may"),
        ({"grey": "cat"}, ("--bundle", "none"), "none is not a bundle"),
        ({"grey": "cat"}, ("--image-root", "none"), "--image-root none is not a folder"),
        ({"grey": "cat"}, ("--out", "list.xlsx"), "name it .csv or .jsonl"),
        ({"grey": "cat"}, ("--out", "none/list.csv"), "cannot be written"),
        ({"grey": "cat"}, ("--out", "labels.jsonl"), "labels.jsonl exists: name a new list"),
        ({"grey": None}, (), "has no label of a file that is here"),
    ],
)
def test_errors_are_named_and_nothing_is_written(
    labels: Any, more: tuple[str, ...], words: str, photos: Path, tiny_bundle: Path, say: Say, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.jsonl").write_text(json.dumps({"labels": labels}))
    given = [str(tiny_bundle) if word == "BUNDLE" else word for word in more]
    root = () if "--image-root" in more else ("--image-root", photos)
    before = sorted(tmp_path.iterdir())
    status, printed, errors = say("review", "import", "labels.jsonl", "--out", "list.csv", *root, *given)
    assert (status, printed) == (1, "")
    assert words in errors
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_a_list_do_not_go_with_a_ledger(say: Say, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "ledger.db").touch()
    status, _, errors = say(
        "review", "import", "x.json", "--ledger", tmp_path / "ledger.db", "--image-root", photos
    )  # fmt: skip
    assert status == 1
    assert "--image-root and --bundle go with --out" in errors
    for neither in ((), ("--ledger", "a", "--out", "b.csv")):
        with pytest.raises(SystemExit):
            say("review", "import", "x.json", *neither)


def test_what_a_killed_import_left_stops_none_of_the_same_number(tmp_path: Path) -> None:
    """In a container the number is the same each time: the list was said to exist already."""
    (tmp_path / f".list.csv.{os.getpid()}.partial").write_text("half")
    listing.write(tmp_path / "list.csv", {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]
    assert "half" not in (tmp_path / "list.csv").read_text()


def test_a_list_without_outliers_gives_none(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.png,cat\n")
    with pytest.raises(DataError, match=r"list\.csv has no row of the kind outlier with an empty label"):
        lists.outliers(tmp_path / "list.csv")
