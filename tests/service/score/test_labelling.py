"""score --format: what Label Studio and FiftyOne read, by their own packages where they are installed."""

import json
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from service.contract import bundle
from service.ledger.reading import Reader
from service.ledger.store import key_of, store_at
from service.review import export, imports
from service.score import labelling, outputs
from service.score.errors import ScoreError
from service.score.labelling import Places
from service.score.rows import ResultRow, columns
from tests.service import tiny
from tests.service.review.kept import Given, fill, picture
from tests.service.score.test_score import score
from tests.service.score.test_score_resume import BATCH, IMAGES, photos, start

__all__ = ["photos"]
NAMES = {
    "red & blue+#%?.png": (220, 30, 30), "ünï.png": (30, 220, 30), "back\\slash.png": (10, 10, 220),
    "dark.png": (0, 0, 0),
}  # fmt: skip
NOT_UTF8 = os.fsdecode(b"\xff.png")
READER = Path(__file__).with_name("fiftyone_reads.py")
FIFTYONE = os.environ.get("FIFTYONE_PYTHON", "")  # a Python with fiftyone and mongomock, which want older packages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names that addresses and JSON must escape, a refused image, and one that cannot be read."""
    found = tmp_path / "my photos"
    found.mkdir()
    for name, colour in NAMES.items():
        (found / name).write_bytes(tiny.photo(colour))
    (found / NOT_UTF8).write_bytes(tiny.photo((220, 0, 0)))
    (found / "bad.webp").write_bytes(b"RIFF....WEBPbroken")
    return found


def written(form: str, folder: Path, tiny_bundle: Path, *more: object) -> Any:
    out = folder.parent / f"{form}.json"
    assert score(folder, "--out", out, "--format", form, "--bundle", tiny_bundle, "--overwrite", *more) == 0
    return json.loads(out.read_text("ascii"))


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def test_tasks_hold_what_was_decided_and_offer_no_refused_class(folder: Path, tiny_bundle: Path) -> None:
    tasks = {Path(task["data"]["path"]).name: task for task in written("label-studio", folder, tiny_bundle)}
    assert set(tasks) == {*NAMES, "\\xff.png", "bad.webp"}
    (red,) = tasks["red & blue+#%?.png"]["predictions"]
    assert red["model_version"] == "tiny 1"
    assert red["score"] == pytest.approx(0.9988, abs=1e-3)
    assert [(r["from_name"], r["to_name"], r["type"], r["value"]) for r in red["result"]] == [
        ("choice", "image", "choices", {"choices": ["red"]})
    ]
    dark = tasks["dark.png"]
    assert dark["predictions"] == [{"model_version": "tiny 1", "result": []}]
    assert (dark["data"]["decision"], dark["data"]["predicted"]) == ("reject", "red")
    assert dark["data"]["verdict"] == "refused; it would have been red, 33%"
    assert dark["data"]["p_value"] == 0.01
    bad = tasks["bad.webp"]
    assert (bad["predictions"], bad["data"]["error"]) == ([], "invalid-image")
    assert bad["data"]["verdict"].startswith("not read (invalid-image): ")
    assert not any({"choice", "label", "class"} & set(task["data"]) for task in tasks.values())  # of JSON-MIN


def test_addresses_lead_back_to_the_files(folder: Path, tiny_bundle: Path) -> None:
    for root, more in ((Path("/"), ()), (folder.parent, ("--image-root", folder.parent))):
        for task in written("label-studio", folder, tiny_bundle, *more):
            url = urlsplit(task["data"]["image"])
            assert (url.path, url.fragment) == ("/data/local-files/", "")
            (path,) = parse_qs(url.query, errors="surrogateescape")["d"]
            assert (root / path).is_file(), path
            assert not path.startswith("/")
    tasks = written("label-studio", folder, tiny_bundle, "--image-root", folder, "--image-prefix", "https://x.org/")
    assert {t["data"]["image"] for t in tasks} >= {"https://x.org/red%20%26%20blue%2B%23%25%3F.png"}


def test_addresses_of_object_stores_stay_and_windows_has_its_separator() -> None:
    assert Places().url("s3://photos/a b.jpg") == "s3://photos/a b.jpg"
    assert labelling.slashes("photos\\a.jpg", "\\") == "photos/a.jpg"
    assert labelling.slashes("photos/a\\b.jpg", "/") == "photos/a\\b.jpg"


def test_the_interface_has_every_class_and_what_a_person_may_say(folder: Path, tiny_bundle: Path) -> None:
    written("label-studio", folder, tiny_bundle)
    view = ElementTree.parse(folder.parent / "label-studio.xml").getroot()
    assert [choice.get("value") for choice in view.iter("Choice")] == ["red", "green", "blue", "outlier", "unsure"]
    odd = ElementTree.fromstring(labelling.interface(['a "b" <c> & d', "unsure"]))
    assert [choice.get("value") for choice in odd.iter("Choice")] == ['a "b" <c> & d', "unsure", "outlier"]


def test_label_studio_accepts_it(folder: Path, tiny_bundle: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    tasks = written("label-studio", folder, tiny_bundle)
    interface = sdk.LabelInterface((folder.parent / "label-studio.xml").read_text())
    interface.validate()
    predictions = [prediction for task in tasks for prediction in task["predictions"]]
    assert len(predictions) == 5
    assert [interface.validate_prediction(one, return_errors=True) for one in predictions] == [[]] * 5
    wrong = {"result": [predictions[0]["result"][0] | {"value": {"choices": ["violet"]}}]}
    assert interface.validate_prediction(wrong, return_errors=True)
    asked = {name for control in interface.objects for name in [control.value_name]}
    assert all(asked <= set(task["data"]) for task in tasks)


# ---- FiftyOne --------------------------------------------------------------------------------------------------------


def test_samples_hold_what_was_decided(folder: Path, tiny_bundle: Path) -> None:
    found = written("fiftyone", folder, tiny_bundle)
    samples = {Path(sample["filepath"]).name: sample for sample in found["samples"]}
    assert found["info"]["bundle"] == "tiny 1"
    assert {Path(s["filepath"]).parent for s in found["samples"]} == {folder}
    dark = samples["dark.png"]
    assert (dark["tags"], dark["predictions"]["tags"]) == (["reject"], ["reject"])
    assert (dark["predictions"]["label"], dark["predictions"]["decision"]) == ("red", "reject")
    assert dark["predictions"]["confidence"] == pytest.approx(1 / 3)
    assert dark["predictions"]["energy"] == pytest.approx(-1.0986, abs=1e-3)
    bad = samples["bad.webp"]
    assert (bad["tags"], bad["error"], "predictions" in bad) == (["error"], "invalid-image", False)
    declared = {name.partition(".")[2] for name in found["sample_fields"] if name.startswith("predictions.")}
    assert declared == set(dark["predictions"]) - {"_cls", "tags", "label", "confidence"}


def test_classes_that_differ_by_a_dot_keep_their_probabilities_apart(tmp_path: Path) -> None:
    """The second took the place of the first, whose column was not there."""
    kinds: dict[str, Any] = {"path": "string", "error": "string", "label": "string", "decision": "string",
                             "probability": "float32", "probability_a.b": "float32", "probability_a_b": "float32",
                             "probability_a_b_": "float32"}  # fmt: skip
    row: ResultRow = {"path": "x.png", "error": None, "label": "a.b", "decision": "accept", "probability": 0.5,
                      "probability_a.b": 0.5, "probability_a_b": 0.3, "probability_a_b_": 0.2}  # fmt: skip
    outputs.write(tmp_path / "o.json", kinds, [row], {"bundle": "x 1"}, "fiftyone", Places())
    found = json.loads((tmp_path / "o.json").read_text())
    said = found["samples"][0]["predictions"]
    assert [said[f"probability_a_b{end}"] for end in ("", "_", "__")] == [0.5, 0.3, 0.2]
    assert sum(name.startswith("predictions.probability_a_b") for name in found["sample_fields"]) == 3


@pytest.mark.skipif(not FIFTYONE, reason="FIFTYONE_PYTHON names no Python with fiftyone and mongomock")
def test_fiftyone_reads_it(folder: Path, tiny_bundle: Path) -> None:
    written("fiftyone", folder, tiny_bundle, "--embedding" if bundle.read(tiny_bundle).embedding else "--probabilities")
    again = folder.parent / "again.json"
    done = subprocess.run(
        [FIFTYONE, READER, folder.parent / "fiftyone.json", again], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["media_type"] == "image"
    assert said["decisions"] == {"accept": 4, "reject": 1, "null": 1}
    assert "predictions.energy" in said["fields"]
    assert said["errors"] == ["invalid-image"]
    labels = {Path(given.file).name: given.label for given in imports.read(again.read_bytes())}
    assert labels["dark.png"] == "outlier"  # what the reader, as a person, has put into ground_truth
    assert labels["red & blue+#%?.png"] is None  # a prediction that nobody looked at


# ---- Both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", labelling.FORMATS)
def test_a_killed_run_goes_on_to_the_same_file(form: str, photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    given = [str(photos), "--bundle", str(tiny_bundle), "--batch-images", str(BATCH), "--format", form]
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert score(*given, "--out", whole) == 0
    child = start("append:3", [*given, "--out", str(out)])
    child.communicate(timeout=120)
    assert (child.returncode, out.exists()) == (-9, False)
    assert score(*given, "--out", out) == 0
    assert out.read_text() == whole.read_text()
    assert out.read_text().count("\n{") == IMAGES
    assert not (tmp_path / "out.json.partial").exists()


@pytest.mark.parametrize("form", labelling.FORMATS)
def test_rows_that_are_written_are_not_kept(form: labelling.Format, tiny_bundle: Path, tmp_path: Path) -> None:
    """A row takes hundreds of bytes, and five bytes kept of each would be seen."""
    manifest = bundle.read(tiny_bundle)
    kinds = columns(manifest, probabilities=False)
    values: ResultRow = {"decision": "accept", "label": "red", "probability": 0.9, "group": "many", "p_value": 0.5}

    def rows() -> Iterator[ResultRow]:
        for i in range(20_000):
            yield dict.fromkeys(kinds) | values | {"path": f"photos/{i:06d}.jpg"}

    tracemalloc.start()
    outputs.write(tmp_path / "out.json", kinds, rows(), {"bundle": "tiny 1"}, form, Places())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**17
    assert (tmp_path / "out.json").read_text().count("\n{") == 20_000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--format", "fiftyone", "--out", "a.csv"), "name it .json"),
        (("--out", "a.json"), "or give --format"),
        (("--out", "a.csv", "--image-root", "/"), "--image-root goes with --format"),
        (("--format", "fiftyone", "--out", "a.json", "--image-prefix", "x"), "goes with --format label-studio"),
        (("--format", "fiftyone", "--out", "a.json", "--image-root", "/none"), "does not lie below --image-root"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_scored(
    given: tuple[str, ...], words: str, folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("service.score.command._scorer", None)
    with pytest.raises(ScoreError, match=words):
        score(folder, "--bundle", tiny_bundle, *given)
    assert [path.name for path in folder.parent.iterdir() if path.is_file()] == []


def test_fiftyone_gets_no_address_and_an_interface_is_not_replaced(folder: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ScoreError, match="FiftyOne opens files of its own machine only"):
        Places().check(["s3://a/b.jpg"], "fiftyone")
    Places().check(["s3://a/b.jpg"], "label-studio")
    out, xml = folder.parent / "out.json", folder.parent / "out.xml"
    xml.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ScoreError, match=r"out\.xml exists already and is no labelling interface of ours"):
            outputs.write_interface(out, ["cat"], overwrite)
        assert xml.read_text() == "mine"
    xml.write_text(labelling.interface(["dog"]))
    with pytest.raises(ScoreError, match=r"out\.xml, the labelling interface, exists already"):
        score(folder, "--bundle", tiny_bundle, "--format", "label-studio", "--out", out)
    outputs.write_interface(out, ["cat"], overwrite=True)
    assert xml.read_text() == labelling.interface(["cat"])


def test_what_people_correct_comes_back_and_predictions_alone_do_not(tiny_bundle: Path, tmp_path: Path) -> None:
    """review export → score → a person in the tool → review import, for both tools."""
    ledger, store = str(tmp_path / "ledger.db"), tmp_path / "store"
    fill(
        ledger,
        store,
        bundle.read(tiny_bundle),
        [Given(picture(c, i), None) for i, c in enumerate([(220, 30, 30), (220, 0, 0), (0, 0, 0)])],
    )
    reader = Reader(ledger, store_at(str(store)))
    export.folder(reader, tmp_path / "todo", unlabelled=True)
    reader.close()
    files = tmp_path / "todo" / "unlabelled"
    tasks = written("label-studio", files, tiny_bundle)
    samples = written("fiftyone", files, tiny_bundle)
    for untouched in (tasks, samples):
        assert [given.label for given in imports.read(json.dumps(untouched).encode())] == [None] * 3
    for task in tasks:
        said = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["blue"]}}
        task["annotations"] = [{"result": [said]}]
    for sample in samples["samples"]:
        sample["ground_truth"] = {"_cls": "Classification", "label": "blue"}
    for corrected in (tasks, samples):
        given = imports.read(json.dumps(corrected).encode())
        assert {one.label for one in given} == {"blue"}
        assert {imports.KEY.findall(one.file)[-1] for one in given} == {
            key_of(path.read_bytes())[:16] for path in files.iterdir()
        }
