"""Export and import: folders that training reads, the same as a tar, labels of other tools; a KILL while labelling."""

import csv
import errno
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import main
from service.contract.bundle import Manifest
from service.errors import InvalidParameter, MalformedRequest
from service.ledger.database import connect
from service.ledger.reading import Reader
from service.ledger.rows import Labels, Truth
from service.ledger.store import key_of, store_at
from service.ledger.tables import Tables
from service.review import export, imports
from service.review.names import folders
from tests import warm
from tests.live import ROOT, serving
from tests.service.review.kept import Given, colours, fill, picture
from training.data import lists, photographs
from training.data.folders import read_folders
from training.data.lists import read_list
from training.learn import data as learn_data
from training.learn import reviewed

VIOLET, GREY = (120, 20, 220), (90, 90, 90)


def mark(where: str, rows: list[int], kind: str, label: str, key: str | None = "eva") -> None:
    database = connect(where)
    Tables(database).write(
        [Labels(time.time(), rows, Truth(kind, label), "review", "g1", key, Future())]  # type: ignore[arg-type]
    )
    database.close()


def tailguard(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return warm.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def labelled(where: str, tmp_path: Path, manifest: Manifest) -> str:
    """Images of a class, of a new one, an outlier, an unsure one, one whose label was taken back, a picture twice."""
    given = [*colours({VIOLET: 8}), Given(picture(VIOLET, 0), None)]  # the ninth is the first again
    fill(where, tmp_path / "store", manifest, given)
    mark(where, [1, 2], "class", "red")
    mark(where, [3], "new", "jelly fish")
    mark(where, [4], "outlier", "outlier")
    mark(where, [5], "unsure", "")
    mark(where, [6], "class", "blue")
    mark(where, [6], "withdrawn", "")
    mark(where, [9], "class", "green")  # the last word on the first picture
    return where


def lines(text: str) -> dict[str, dict[str, str]]:
    return {line["path"]: line for line in csv.DictReader(io.StringIO(text))}


def test_an_export_is_what_training_reads(labelled: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tailguard("review", "export", "--ledger", labelled, "--store", tmp_path / "store", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    keys = [key_of(picture(VIOLET, i)) for i in range(8)]
    assert found == sorted(
        ["labels.csv", f"train/green/{keys[0][:16]}.png", f"train/red/{keys[1][:16]}.png",
         f"train/jelly fish/{keys[2][:16]}.png", f"outliers/{keys[3][:16]}.png"]
    )  # fmt: skip
    assert (out / f"train/red/{keys[1][:16]}.png").read_bytes() == picture(VIOLET, 1)
    table = lines((out / "labels.csv").read_text())
    assert next(iter(table.values())).keys() == set(export.COLUMNS)
    red, outlier = table[f"train/red/{keys[1][:16]}.png"], table[f"outliers/{keys[3][:16]}.png"]
    assert (red["label"], red["kind"], red["request_id"], red["image_key"]) == ("red", "class", "r1", keys[1])
    assert (red["reviewer"], red["source"], red["group"], red["keep_probability"]) == ("eva", "review", "g1", "1.0")
    assert (outlier["label"], outlier["kind"]) == ("", "outlier")
    assert sorted(read_folders(out).parts["train"].classes) == ["green", "jelly fish", "red"]
    assert sorted(p.name for p in tmp_path.iterdir() if "partial" in p.name) == []


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_list_of_an_export_is_read_as_it_is(labelled: str, tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    arguments = ("--ledger", labelled, "--store", tmp_path / "store", "--out", out, "--list", kind)
    assert f"4 images and labels.{kind}" in tailguard("review", "export", *arguments).stdout
    assert [path.name for path in out.iterdir() if path.is_file()] == [f"labels.{kind}"]
    listed = out / f"labels.{kind}"
    parts = read_list(listed)
    train = parts.parts["train"]
    said = {Path(path).relative_to(out).parts[1]: train.classes[label]
            for path, label in zip(train.paths, train.labels.tolist(), strict=True)}  # fmt: skip
    assert said == {"green": "green", "red": "red", "jelly fish": "jelly fish"}
    assert all(Path(path).is_file() for path in train.paths)
    assert set(train.columns["reviewer"]) == {"eva"}
    assert parts.notes == [f"{listed}: 1 rows are outliers, in no class: --outliers {listed} trains on them"]
    assert lists.outliers(listed) == [str(next((out / "outliers").iterdir()))]
    for where in (out, listed):
        found = reviewed.read(where, ["red"], tmp_path / f"{where.name}.npz", notes := [])
        assert sorted(found.labels.tolist()) == ["", "green", "jelly fish", "red"]
        assert set(found.groups.tolist()) == {"g1"}
        assert notes == []
    if kind == "parquet":
        from pyarrow import parquet

        table = parquet.read_table(listed)
        assert table.column_names == list(export.COLUMNS)
        rows = {row["label"]: row for row in table.to_pylist()}
        assert rows["red"]["keep_probability"] == 1.0
        assert isinstance(rows["red"]["time"], float)
        assert rows["red"]["index"] == 0
        assert rows[""]["kind"] == "outlier"


@pytest.mark.parametrize("name", ["Acacia sp.", "milk 3.5%", "a:b"])
def test_a_known_class_that_no_folder_may_be_called_is_learned_as_itself(
    where: str, tmp_path: Path, manifest: Manifest, name: str
) -> None:
    """Its folder is called otherwise: without the list the class would be a new one."""
    odd = manifest.classes[0].model_copy(update={"name": name})
    changed = manifest.model_copy(update={"classes": [odd, *manifest.classes[1:]]})
    fill(where, tmp_path / "store", changed, colours({VIOLET: 3}))
    mark(where, [1, 2], "class", name)
    reader = Reader(where, store_at(str(tmp_path / "store")))
    assert export.folder(reader, tmp_path / "out") == 2
    reader.close()
    moved = next((tmp_path / "out" / "train").rglob("*.png"))
    (tmp_path / "out" / "train" / "blue").mkdir()
    moved.rename(tmp_path / "out" / "train" / "blue" / moved.name)  # somebody has put it right: what the folder says
    found = reviewed.read(tmp_path / "out", [name, "blue"], tmp_path / "scan.npz", [])
    assert sorted(found.labels.tolist()) == sorted([name, "blue"])
    assert set(photographs.read_parts(tmp_path / "out").parts["train"].classes) == {name, "blue"}  # for fit and train


def test_an_export_copied_over_another_is_noticed(where: str, tmp_path: Path, manifest: Manifest) -> None:
    """`cp -r` of two exports into one folder keeps one list: class names and groups of the other are lost."""
    odd = manifest.classes[0].model_copy(update={"name": "Acacia sp."})
    fill(where, tmp_path / "store", manifest.model_copy(update={"classes": [odd, *manifest.classes[1:]]}),
         colours({VIOLET: 4}))  # fmt: skip
    reader = Reader(where, store_at(str(tmp_path / "store")))
    mark(where, [1], "class", "Acacia sp.")
    mark(where, [2], "outlier", "outlier")
    export.folder(reader, tmp_path / "both")
    for rows in ([1], [2]):
        mark(where, rows, "withdrawn", "")
    mark(where, [3], "class", "blue")
    export.folder(reader, tmp_path / "second")
    reader.close()
    shutil.copytree(tmp_path / "second", tmp_path / "both", dirs_exist_ok=True)
    found = reviewed.read(tmp_path / "both", ["Acacia sp.", "blue"], tmp_path / "scan.npz", notes := [])
    assert sorted(found.labels.tolist()) == ["", "Acacia sp.", "blue"]  # not the new class "Acacia sp%2E"
    assert ["1 images have no row in the list of the export (train/Acacia sp%2E/" in note for note in notes] == [1, 0]
    assert "1 images have no row in the list of the export (outliers/" in notes[1]
    assert len(photographs.read_parts(tmp_path / "both").notes) == 1  # of fit and train


def test_the_list_of_an_export_is_read_once(labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    export.folder(reader, tmp_path / "out")
    reader.close()
    read, asked = lists.rows, []
    monkeypatch.setattr(lists, "rows", lambda path: asked.append(path) or read(path))
    found = reviewed.read(tmp_path / "out", ["red"], tmp_path / "scan.npz", [])
    assert sum(learn_data.sources(tmp_path / "out").values()) == len(found)
    assert len(asked) == 1
    listed = tmp_path / "out" / "labels.csv"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:2]))  # another is read again
    assert sum(learn_data.sources(tmp_path / "out").values()) == 1


def test_a_list_as_parquet_without_pyarrow_is_refused(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    with pytest.raises(export.ExportError, match=r"needs pyarrow: pip install 'tailguard\[parquet\]'"):
        export.folder(reader, tmp_path / "out", parquet=True)
    reader.close()
    assert not (tmp_path / "out").exists()


def test_the_last_word_is_the_last_whatever_the_clock_says(labelled: str, tmp_path: Path) -> None:
    """The clock was set back between two labels of one picture: the earlier one was exported."""
    database = connect(labelled)
    database.execute("UPDATE feedback SET time = time - 3600 WHERE decision_row = 9")
    database.close()
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    export.folder(reader, tmp_path / "out")
    reader.close()
    assert (tmp_path / f"out/train/green/{key_of(picture(VIOLET, 0))[:16]}.png").is_file()


def test_an_export_never_changes_a_folder(labelled: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = tailguard("review", "export", "--ledger", labelled, "--store", tmp_path / "store", "--out", out)
    assert done.returncode == 1
    assert "exists: name a new folder" in done.stderr
    assert list(out.iterdir()) == []


def test_a_read_only_place_is_one_line(labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system", "somewhere")

    monkeypatch.setattr(Path, "mkdir", read_only)
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    with pytest.raises(export.ExportError, match="out cannot be written: Read-only file system"):
        export.folder(reader, tmp_path / "out")
    reader.close()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE TABLE people (name TEXT)", "holds the tables of something else (people)"),
        ("CREATE TABLE ledger (version INTEGER); INSERT INTO ledger VALUES (99)", "schema version 99"),
        (None, "the ledger cannot be used (file is not a database)"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(
    tmp_path: Path, made: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import made the ledger's ten tables in another application's database; the rest were tracebacks."""
    path, given = tmp_path / "ledger.db", tmp_path / "labels.json"
    given.write_text('[{"data": {"image": "a.jpg"}, "annotations": []}]')
    if made is None:
        path.write_bytes(b"SQLite format 3\0 and nothing of it")
    else:
        with closing(sqlite3.connect(path)) as other:
            other.executescript(made)
    before = path.read_bytes()
    out = tmp_path / "out"
    for arguments in (["import", str(given)], ["export", "--store", str(tmp_path), "--out", str(out)]):
        assert main(["review", *arguments, "--ledger", str(path)]) == 1
        error = capsys.readouterr().err
        assert (error.count("\n"), said in error) == (1, True), error
    assert path.read_bytes() == before


def test_the_tar_holds_the_same_as_the_folder(labelled: str, tmp_path: Path) -> None:
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    count = export.folder(reader, tmp_path / "out")
    with tarfile.open(fileobj=io.BytesIO(b"".join(export.tar(reader)))) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
        tar.extractall(tmp_path / "again", filter="data")
    reader.close()
    assert count == 4
    assert held == {
        str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }


def test_a_class_that_comes_while_an_export_is_written_is_no_outlier(labelled: str, tmp_path: Path) -> None:
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    text = io.StringIO()
    written = export.files(reader, text, [])
    first = next(written)
    mark(labelled, [3], "new", "sea slug")
    rest = list(written)
    reader.close()
    assert not any(key_of(picture(VIOLET, 2))[:16] in file.path for file in [first, *rest])
    assert {line["path"]: line["kind"] for line in lines(text.getvalue()).values() if "outliers" in line["path"]} == {
        f"outliers/{key_of(picture(VIOLET, 3))[:16]}.png": "outlier"
    }


def test_an_export_says_which_labelled_images_it_lacks(
    labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (tmp_path / "store" / k[:2] / k[2:4] / k for k in (key_of(picture(VIOLET, i)) for i in (1, 2)))
    first.unlink()
    second.write_bytes(b"cut short")
    arguments = ("review", "export", "--ledger", labelled, "--store", tmp_path / "store", "--out")
    done = tailguard(*arguments, tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"written: {tmp_path / 'out'}, 2 images and labels.csv\n")
    assert "2 images are left out" in done.stderr
    assert first.name in done.stderr
    reader = Reader(labelled, store_at(str(tmp_path / "store")))
    b"".join(export.tar(reader))
    reader.close()
    said = capsys.readouterr()
    assert "an export lacks labelled images" in said.out + said.err  # there once a command has run in this process
    second.unlink()
    second.mkdir()  # a store that cannot be read is not the folder that cannot be written
    done = tailguard(*arguments, tmp_path / "again")
    assert (done.returncode, "the store of the images cannot be read" in done.stderr) == (1, True)
    assert not (tmp_path / "again").exists()


def test_what_is_unlabelled_goes_out_and_comes_back_from_other_tools(labelled: str, tmp_path: Path) -> None:
    out = tmp_path / "todo"
    arguments = ("--ledger", labelled, "--store", tmp_path / "store", "--out", out, "--unlabelled")
    assert tailguard("review", "export", *arguments).returncode == 0
    files = sorted((out / "unlabelled").iterdir())
    assert {path.name for path in files} == {f"{key_of(picture(VIOLET, i))[:16]}.png" for i in (5, 6, 7)}
    studio = [
        {"data": {"image": f"/data/upload/1/a1b2c3d4-{file.name}"}, "annotations": [
            {"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": [label]}}]}]}
        for file, label in zip(files, ("blue", "Outlier", "sea slug"), strict=True)
    ]  # fmt: skip
    (tmp_path / "studio.json").write_text(json.dumps(studio))
    done = tailguard("review", "import", "--ledger", labelled, tmp_path / "studio.json", "--reviewer", "ben")
    assert done.stdout == "labelled: 3 images; 0 had a label, 0 entries have none\n"
    again = tailguard("review", "import", "--ledger", labelled, tmp_path / "studio.json")
    assert again.stdout == "labelled: 0 images; 3 had a label, 0 entries have none\n"
    reader = Reader(labelled)
    said = {row.image_key[:16]: row.label for row in reader.labelled() if row.label and row.image_key}
    reader.close()
    assert [(said[f.stem].kind, said[f.stem].label) for f in files] == [
        ("class", "blue"), ("outlier", "outlier"), ("new", "sea slug")
    ]  # fmt: skip
    assert {(said[f.stem].source, said[f.stem].reviewer) for f in files} == {("import", "ben")}


@pytest.mark.parametrize(("content", "expected"), [
    ([{"image": "x/0123456789abcdef.jpg", "choice": "cat"}], [("x/0123456789abcdef.jpg", "cat")]),
    ([{"data": {"image": "a"}, "annotations": [{"was_cancelled": True, "result": []}]}], [("a", None)]),
    ([{"data": {"image": "a"}, "annotations": [{"result": [
        {"type": "choices", "value": {"choices": ["x", "y"]}}]}]}], [("a", None)]),
    ({"classes": ["cat", "dog"], "labels": {"a": 1, "b": "cat", "c": None, "d": {"label": "dog"}}},
     [("a", "dog"), ("b", "cat"), ("c", None), ("d", "dog")]),
    ({"samples": [{"filepath": "data/a.jpg", "ground_truth": {"_cls": "Classification", "label": "cat"}},
                  {"filepath": "data/b.jpg", "ground_truth": None}]}, [("data/a.jpg", "cat"), ("data/b.jpg", None)]),
    ({"samples": [{"filepath": "a", "ground_truth": {"_cls": "Classification", "label": 5}}]}, [("a", None)]),
    ([{"data": {"image": "a"}, "annotations": [{"result": [{"value": {"choices": [["cat"]]}}]}]}], [("a", None)]),
])  # fmt: skip
def test_formats(content: Any, expected: list[tuple[str, str | None]]) -> None:
    assert [(one.file, one.label) for one in imports.read(json.dumps(content).encode())] == expected


@pytest.mark.parametrize("content", [
    "1", "{}", '"x"', '{"labels": []}', "[1]", '[{"data": 1}]', '{"samples": [1]}', '{"labels": {"a": 7}}',
    '[{"data": {"a": "b"}, "annotations": [{}]}]',
])  # fmt: skip
def test_files_of_no_format(content: str) -> None:
    with pytest.raises(InvalidParameter):
        imports.read(content.encode())
    with pytest.raises(InvalidParameter, match=r"'a\.jpg' is named twice"):  # the last label was taken
        imports.read(b'{"classes": ["cat", "dog"], "labels": {"a.jpg": 0, "a.jpg": 1}}')
    for broken in (b"{", b"\xff\xfe", b"[" * 100_000):
        with pytest.raises(MalformedRequest):
            imports.read(broken)


def test_a_bad_name_labels_nothing(labelled: str, tmp_path: Path) -> None:
    keys = [key_of(picture(VIOLET, i)) for i in (5, 6)]
    given = {"labels": {keys[0]: "blue", keys[1]: "../../etc"}}
    (tmp_path / "labels.json").write_text(json.dumps(given))
    done = tailguard("review", "import", "--ledger", labelled, tmp_path / "labels.json")
    assert done.returncode == 1
    assert "no folder may" in done.stderr
    reader = Reader(labelled)
    assert all(row.image_key not in keys for row in reader.labelled())
    reader.close()


def test_an_import_knows_the_classes_of_every_model_and_one_spelling_of_each(
    where: str, tmp_path: Path, manifest: Manifest
) -> None:
    """Two bundles have decided: a class of one is a new class to the other, and no reason to label nothing."""
    later = manifest.classes[0].model_copy(update={"name": "sea slug"})
    other = manifest.model_copy(update={"version": "2", "classes": [later, *manifest.classes[1:]]})
    given = colours({VIOLET: 5})
    fill(where, tmp_path / "store", manifest, given[:4])
    fill(where, tmp_path / "store", other, given[4:], start=4)
    mark(where, [1], "new", "Jelly")
    said = ("Sea Slug", "JELLY", "Sea Slug", "red")
    labels = {key_of(one.file): name for one, name in zip(given[1:], said, strict=True)}
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    done = tailguard("review", "import", "--ledger", where, tmp_path / "labels.json")
    assert done.stdout.startswith("labelled: 4 images"), done.stderr
    reader = Reader(where)
    assert [(row.label.kind, row.label.label) for row in reader.labelled() if row.label] == [
        ("new", "Jelly"), ("new", "sea slug"), ("new", "Jelly"), ("new", "sea slug"), ("new", "red")
    ]  # fmt: skip
    reader.close()


def test_an_import_that_says_two_things_of_an_image_labels_nothing(labelled: str, tmp_path: Path) -> None:
    key = key_of(picture(VIOLET, 5))
    entries = [{"image": f"{key[:16]}.png", "choice": "blue"}, {"image": f"copy/{key}.png", "choice": "red"}]
    (tmp_path / "tasks.json").write_text(json.dumps(entries))
    done = tailguard("review", "import", "--ledger", labelled, tmp_path / "tasks.json")
    assert done.returncode == 1
    assert f"'copy/{key}.png' is said to show 'blue' and 'red'" in done.stderr
    reader = Reader(labelled)
    assert all(row.image_key != key for row in reader.labelled())
    reader.close()


def test_folders_of_a_model_with_difficult_classes() -> None:
    found = folders(["Fruit", "Fruit/Apple", "Fish/Cod", "a:b", "../x"])
    assert found == {"Fruit": "Fruit", "Fruit/Apple": "Fruit%2FApple", "Fish/Cod": "Fish/Cod", "a:b": "a%3Ab",
                     "../x": "%2E%2E/x"}  # fmt: skip


def served_by(parent: int) -> int:
    """The process of the service that `parent` has started."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or b"\0serve\0" not in (process / "cmdline").read_bytes():
            continue
        if int((process / "stat").read_text().rpartition(") ")[2].split()[1]) == parent:
            return int(process.name)
    raise AssertionError("no service runs")


def test_kill_while_labelling_loses_no_label_that_was_answered(
    embedding_bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    fill(str(ledger), tmp_path / "store", manifest, colours({VIOLET: 200}))
    answered: list[int] = []
    kept = {"ledger": ledger, "store": tmp_path / "store", "keep": "rejected"}
    with serving(embedding_bundle, subprocess.Popen, **kept) as url:
        service = served_by(os.getpid())

        def work() -> None:
            with httpx.Client(base_url=url, timeout=20) as client:
                for row in range(1, 201):
                    try:
                        body = {"rows": [row], "kind": "new", "label": "violet"}
                        answered.extend(client.post("/review/labels", json=body).raise_for_status().json()["rows"])
                    except httpx.HTTPError:
                        return

        thread = threading.Thread(target=work)
        thread.start()
        while len(answered) < 20:
            time.sleep(0.01)
        os.kill(service, signal.SIGKILL)
        thread.join()
    reader = Reader(str(ledger))
    held = {row.row for row in reader.labelled()}
    reader.close()
    assert 20 <= len(answered) < 200
    assert set(answered) <= held
