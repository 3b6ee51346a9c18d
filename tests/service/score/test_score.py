"""Bulk scoring: the rows, the kinds of bad files, the forms of the output, the refusals."""

import argparse
import csv
import importlib
import json
import os
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import settings
from service.contract import bundle
from service.contract.bundle import BundleError
from service.contract.decision import decide
from service.errors import SettingsError, TailGuardError
from service.inference.engine import Engine, Outputs
from service.score import add_arguments, main
from service.score.errors import ScoreError
from service.score.rows import Scorer
from tests.service import tiny

COLOURS = ((220, 30, 30), (10, 200, 20), (10, 20, 200), (128, 128, 128), (60, 60, 61))
ODD_NAMES = ("a,b.png", 'say "x".png', "two\nlines.png", "Icon\r.png", " blank .png", "Möwe.png", "=1+1.png")

Rows = list[dict[str, Any]]
Run = Callable[..., Rows]


def score(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(a) for a in arguments]))


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path) -> Run:
    """Score into JSON lines and return the rows."""

    def scored(*arguments: object) -> Rows:
        out = tmp_path / "out.jsonl"
        assert score(*arguments, "--out", out, "--bundle", tiny_bundle, "--overwrite") == 0
        assert sorted(p.name for p in tmp_path.iterdir() if "out.jsonl" in p.name) == ["out.jsonl"]
        return rows_of(out)

    return scored


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images of several sizes and forms in two folders, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i in range(20):
        form = ("png", "jpeg", "webp")[i % 3]
        where = folder / ("sub" if i % 2 else "") / f"{i:02d}.{form}"
        where.write_bytes(tiny.photo(COLOURS[i % len(COLOURS)], (8 + i, 9 + 2 * i), form.upper()))
    (folder / "notes.md").write_text("no image")
    return folder


def test_values_by_hand(run: Run, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(tiny.photo((220, 30, 30), (16, 24)))
    probabilities, scores = tiny.reference(np.full((1, 8, 8, 3), (220, 30, 30), np.uint8))
    energy = pytest.approx(float(scores["energy"][0]), rel=1e-5)
    (row,) = run(tmp_path / "red.png", "--probabilities")
    assert row == {
        "path": str(tmp_path / "red.png"),
        "decision": "accept",
        "label": "red",
        "class_index": 0,
        "group": "many",
        "probability": pytest.approx(float(probabilities[0, 0]), rel=1e-5),
        "score_energy": energy,
        "score_msp": pytest.approx(float(scores["msp"][0]), rel=1e-3),
        "deciding_score": energy,
        "threshold": tiny.THRESHOLD["id95"],
        "p_value": (1 + sum(s >= scores["energy"][0] for s in tiny.ID_SCORES)) / 100,
        "width_px": 16,
        "height_px": 24,
        "error": None,
        "error_detail": None,
        **{
            f"probability_{name}": pytest.approx(float(p), rel=1e-4)
            for name, p in zip(tiny.CLASSES, probabilities[0], strict=True)
        },
    }


def test_point_and_scope_decide(run: Run, tmp_path: Path) -> None:
    (tmp_path / "blue.png").write_bytes(tiny.photo((10, 20, 200)))
    limits = {
        (point, scope): run(tmp_path / "blue.png", "--operating-point", point, "--thresholds", scope)[0]
        for point in tiny.THRESHOLD
        for scope in ("group", "global")
    }
    assert {key: row["threshold"] for key, row in limits.items()} == {
        ("id95", "group"): -5.0, ("id95", "global"): -5.5, ("ood95", "group"): -7.5, ("ood95", "global"): -8.0,
    }  # fmt: skip
    for row in limits.values():  # its energy is -7.85
        assert row["decision"] == ("reject" if row["deciding_score"] > row["threshold"] else "accept")
    assert {row["decision"] for row in limits.values()} == {"accept", "reject"}


def test_threads_and_batches_change_nothing(run: Run, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first = run(photos, "--threads", 1, "--batch-images", 1)
    assert [r["path"] for r in first] == sorted(str(p) for p in photos.rglob("*.*") if p.suffix != ".md")
    assert len({r["deciding_score"] for r in first}) >= len(COLOURS)  # not one value throughout
    for threads, batch in ((4, 1), (1, 16), (4, 16), (3, 5)):
        assert run(photos, "--threads", threads, "--batch-images", batch) == first


def test_bad_files(run: Run, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILGUARD_MAX_BODY_BYTES", "5000")
    monkeypatch.setenv("TAILGUARD_MAX_PIXELS", "1000")
    noise = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)).save(noise, "PNG")
    content = {
        "empty.jpg": b"", "text.jpg": b"hello", "cut.png": noise.getvalue()[:1500], "good.png": tiny.photo(),
        "pixels.png": tiny.photo(size=(40, 26)), "large.bmp": tiny.photo(size=(31, 60), form="BMP"),
    }  # fmt: skip
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    names = [*content, "folder.jpg", "gone.jpg", "pipe.jpg", "loop.jpg", "never.png", "good.png/x.png", "nul\0.png"]
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / n) for n in names))
    rows = run(tmp_path / "list.txt", "--batch-images", 4)
    assert {Path(r["path"]).name if "good.png/" not in r["path"] else "under": r["error"] for r in rows} == {
        "empty.jpg": "invalid-image",
        "text.jpg": "unsupported-media",
        "cut.png": "invalid-image",
        "pixels.png": "invalid-image",
        "large.bmp": "body-too-large",
        "good.png": None,
        "folder.jpg": "not-a-file",
        "gone.jpg": "not-found",
        "pipe.jpg": "not-a-file",
        "loop.jpg": "unreadable",
        "never.png": "not-found",
        "under": "not-found",
        "nul\0.png": "not-found",
    }
    for row in rows:
        if row["error"]:
            assert row.pop("error_detail")
            assert {name for name, value in row.items() if value is not None} == {"path", "error"}
    assert "1040" in next(r for r in run(tmp_path / "pixels.png"))["error_detail"]  # 40 x 26


@pytest.mark.parametrize(("raised", "slug"), [(PermissionError(13, "Permission denied"), "permission-denied"),
                                              (OSError(5, "Input/output error"), "unreadable")])  # fmt: skip
def test_faults_that_root_cannot_make(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, raised: OSError, slug: str
) -> None:
    real = os.open

    def failing(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith("04.jpeg"):
            raise raised
        return real(path, *arguments, **more)

    monkeypatch.setattr("service.score.rows.os.open", failing)
    bad = [r for r in run(photos) if r["error"]]
    assert [(r["path"], r["error"], r["error_detail"]) for r in bad] == [
        (str(photos / "04.jpeg"), slug, raised.strerror)
    ]


def test_no_finite_number_is_null_and_rejected(tiny_bundle: Path, tmp_path: Path) -> None:
    class Broken:
        manifest = bundle.read(tiny_bundle)

        def run(self, batch: Any, wanted: Any = None) -> Outputs:
            nan = np.full(len(batch), np.nan, np.float32)
            return Outputs(np.full((len(batch), 3), np.nan, np.float32), {"energy": nan, "msp": nan})

    (tmp_path / "red.png").write_bytes(tiny.photo())
    scorer = Scorer(Broken(), "id95", "group", 1000, 1000, True)
    (row,) = scorer.score([str(tmp_path / "red.png")])
    assert row["decision"] == "reject"
    assert [row[n] for n in scorer.columns if "prob" in n or "score" in n] == [None] * 7
    assert row["p_value"] == decide(Broken.manifest, 0, float("nan"), "id95", "group").p_value


def test_inputs(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paths(*arguments: object) -> list[str]:
        return [r["path"] for r in run(*arguments)]

    monkeypatch.chdir(photos)
    everything = sorted(str(p) for p in Path().rglob("*.*"))
    assert paths("../photos") == ["../photos/" + p for p in sorted(p for p in everything if p != "notes.md")]
    assert paths(".", "--all-files") == ["./" + p for p in everything]
    assert paths("*.png") == sorted(str(p) for p in Path().glob("*.png"))
    assert paths("**/*.png") == sorted(p for p in everything if p.endswith(".png"))
    assert paths("**") == everything  # without the folder
    assert paths("sub/", "00.png") == [*(p for p in everything if p.startswith("sub/")), "00.png"]
    names = ["06.png", "sub/03.png", "00.png", "06.png"]
    Path("list.lst").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"\n\n")
    assert paths("list.lst") == names
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("\n".join(names).encode())))
    assert paths("-") == names
    Path("odd[1]").mkdir()
    Path("odd[1]/x.JPG").write_bytes(tiny.photo())
    Path("odd[1]/circle").symlink_to("..")
    assert "odd[1]/x.JPG" in paths("odd[1]")
    assert len(paths("odd[1]")) == 21  # each folder once, though the link leads back


def test_images_are_found_by_content_and_the_rest_is_said(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "no_suffix").write_bytes(tiny.photo())
    (photos / ".hidden.png").write_bytes(tiny.photo())
    (photos / "sub" / "dead.png").symlink_to(photos / "nowhere")
    rows = {os.path.relpath(r["path"], photos): r for r in run(photos)}
    assert len(rows) == 22
    assert rows["no_suffix"]["error"] is None
    assert rows["sub/dead.png"]["error"] == "not-found"
    said = capsys.readouterr().err
    assert "left out 1 file that is no image (.md 1)" in said
    assert "left out 1 hidden" in said


def test_a_path_with_brackets_that_was_taken_as_a_pattern_is_said(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(run(photos / "0[02].*")) == 2
    assert "0[02].*: [ ] was taken as a pattern, which matches 2 files" in capsys.readouterr().err
    (photos / "a[1].png").write_bytes(tiny.photo())
    assert len(run(photos / "a[1].png")) == 1
    assert "pattern" not in capsys.readouterr().err


def test_own_files_are_no_input(tiny_bundle: Path, photos: Path) -> None:
    for _ in range(2):
        score(photos, "--all-files", "--out", photos / "r.csv", "--bundle", tiny_bundle, "--overwrite")
        assert len((photos / "r.csv").read_text().splitlines()) == 22


def test_own_files_are_no_input_of_a_pattern_either(
    tiny_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went on scored its own journal, and one that was given again its own results."""
    monkeypatch.chdir(photos)
    names = ["00.png", "r.csv", "r.csv.partial", "sub/03.png"]  # as a shell expands a pattern
    Path("list.txt").write_text("\n".join(names))
    for given, rows in ((["*"], 12), (names, 2), (["list.txt"], 2)):
        Path("r.csv.partial").touch()
        Path("r.csv").touch()
        score(*given, "--out", "r.csv", "--bundle", tiny_bundle, "--overwrite")
        assert len(Path("r.csv").read_text().splitlines()) == 1 + rows
    for given, said in ((["r.csv"], "r.csv: this command writes that itself"), (["r.*"], "it matches nothing")):
        with pytest.raises(ScoreError, match=said):
            score(*given, "--out", "r.csv", "--bundle", tiny_bundle, "--overwrite")


def test_stdin_that_is_closed(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ScoreError, match="stdin is closed: give one path per line"):
        score("-", "--out", tmp_path / "r.csv", "--bundle", tiny_bundle)


def test_every_form_holds_the_same(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (*ODD_NAMES, os.fsdecode(b"caf\xe9.png")):
        (folder / name).write_bytes(tiny.photo(COLOURS[len(name) % 5]))
    (folder / "bad.png").write_bytes(b"x")
    expected = run(folder, "--probabilities")
    assert [os.fsencode(r["path"]) for r in expected] == sorted(os.fsencode(p) for p in folder.iterdir())
    for suffix in ("csv", "parquet"):
        score(folder, "--out", tmp_path / f"o.{suffix}", "--bundle", tiny_bundle, "--probabilities")
    with (tmp_path / "o.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    table = arrow.read_table(tmp_path / "o.parquet")
    for row in expected:
        row["path"] = row["path"].replace("\udce9", "\\xe9")
    assert table.to_pylist() == expected
    types = {name: str(table.schema.field(name).type) for name in ("path", "class_index", "probability", "p_value")}
    assert types == {"path": "string", "class_index": "int32", "probability": "float", "p_value": "double"}
    assert json.loads(table.schema.metadata[b"tailguard"])["operating_point"] == "id95"


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ScoreError, match=r"tailguard\[parquet\]"):
        score(photos, "--out", tmp_path / "o.parquet")


def test_refusals(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "powershell.txt").write_text("a.png\n", encoding="utf-16")
    (tmp_path / "kept.csv").write_text("mine")
    (tmp_path / "dir.csv").mkdir()
    cases: list[tuple[list[object], type[Exception], str]] = [
        ([photos, "--out", tmp_path / "o.xlsx"], ScoreError, r"o\.xlsx .*\.parquet, \.csv, \.jsonl"),
        ([photos, "--out", tmp_path / "kept.csv"], ScoreError, "exists already.*--overwrite"),
        ([photos, "--out", tmp_path / "dir.csv", "--overwrite"], ScoreError, "exists already"),
        ([photos, "--out", tmp_path / "no/o.csv"], ScoreError, "does not exist"),
        ([tmp_path / "none", "--out", tmp_path / "o.csv"], ScoreError, "none holds no image: --all-files"),
        ([tmp_path / "none", "--out", tmp_path / "o.csv", "--all-files"], ScoreError, "none holds no file$"),
        ([tmp_path / "empty.txt", "--out", tmp_path / "o.csv"], ScoreError, "holds no path"),
        ([tmp_path / "powershell.txt", "--out", tmp_path / "o.csv"], ScoreError, "in UTF-16, .*: save it as UTF-8"),
        ([tmp_path / "x*.png", "--out", tmp_path / "o.csv"], ScoreError, "matches nothing"),
        ([photos, "--out", tmp_path / "o.csv", "--operating-point", "id99"], ScoreError, "id99 .*id95, ood95"),
        ([photos, "--out", tmp_path / "o.csv", "--bundle", tmp_path], BundleError, "not a bundle"),
    ]
    for arguments, kind, message in cases:
        given = [*arguments, *(() if "--bundle" in arguments else ("--bundle", tiny_bundle))]
        with pytest.raises(kind, match=message):
            score(*given)
    assert (tmp_path / "kept.csv").read_text() == "mine"
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or "unfinished" in p.name]
    for bad in (["--threads", "0"], ["--batch-images", "x"], ["--thresholds", "class"]):
        with pytest.raises(SystemExit):
            score(photos, "--out", tmp_path / "o.csv", *bad)


def test_settings_of_the_service_hold(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILGUARD_OPERATING_POINT", "ood95")
    monkeypatch.setenv("TAILGUARD_THRESHOLD_SCOPE", "global")
    assert {r["threshold"] for r in run(photos)} == {tiny.THRESHOLD["ood95"]}
    assert run(photos, "--operating-point", "id95")[0]["threshold"] == tiny.THRESHOLD["id95"]
    monkeypatch.setenv("TAILGUARD_MAX_PIXEL", "1")
    with pytest.raises(SettingsError, match="TAILGUARD_MAX_PIXELS"):
        run(photos)


def test_a_failing_graph_stops_the_run_and_keeps_the_rows(
    tiny_bundle: Path, photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(photos, "--batch-images", 2, "--threads", 1)
    out, real, calls = tmp_path / "o.jsonl", Engine.run, [0]

    def failing(self: Engine, batch: Any, *wanted: Any) -> Outputs:
        calls[0] += len(batch) == 2
        if calls[0] == 6:  # one is the check of the signature
            raise TailGuardError("out of memory")
        return real(self, batch, *wanted)

    arguments = (photos, "--out", out, "--bundle", tiny_bundle, "--batch-images", 2, "--threads", 1)
    monkeypatch.setattr(Engine, "run", failing)
    with pytest.raises(TailGuardError, match="out of memory"):
        score(*arguments)
    assert not out.exists()
    assert len(Path(f"{out}.partial").read_text().splitlines()) == 1 + 8
    monkeypatch.setattr(Engine, "run", real)
    assert score(*arguments) == 0
    assert rows_of(out) == expected


def test_summary(run: Run, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.png").write_bytes(b"")
    rows = run(photos)
    lines = capsys.readouterr().out.splitlines()
    good = [r for r in rows if not r["error"]]
    rejected = [r for r in good if r["decision"] == "reject"]
    assert lines[0] == f"21 images: {20 - len(rejected)} accepted, {len(rejected)} rejected, 1 with an error"
    assert lines[1].split() == ["1", "invalid-image"]
    table = {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in ("many", "medium", "few", "all")}
    assert table["all"] == ["20", f"{len(rejected) / 20:.1%}", "5.0%"]
    for group, promise in (("many", "4.0%"), ("medium", "5.0%"), ("few", "6.0%")):
        mine = [r["decision"] == "reject" for r in good if r["group"] == group]
        assert table[group] == [str(len(mine)), f"{sum(mine) / len(mine):.1%}", promise]
    assert 0 < len(rejected) < 20


def test_rows_are_what_the_service_answers(run: Run, photos: Path, tiny_bundle: Path) -> None:
    from service.web.app import create_app

    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = run(photos)
    config = settings.Settings(bundle=tiny_bundle, decode_threads=1, inference_threads=1)
    with TestClient(create_app(config)) as client:
        for row in rows:
            answered = client.post("/classify", files={"file": Path(row["path"]).read_bytes()})
            body = answered.json()
            if row["error"]:
                assert body["type"].endswith(":" + row["error"])
                assert body["detail"] == row["error_detail"]
                continue
            assert answered.status_code == 200
            for name in ("decision", "label", "class_index", "group", "probability", "p_value"):
                assert row[name] == body[name], name
            assert {n: row[f"score_{n}"] for n in body["scores"]} == body["scores"]
            assert (row["deciding_score"], row["threshold"]) == (
                body["deciding_score"]["value"],
                body["deciding_score"]["threshold"],
            )
            assert {n: row[n] for n in ("width_px", "height_px")} == body["image"]
