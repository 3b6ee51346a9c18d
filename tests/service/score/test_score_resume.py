"""Bulk scoring that is killed, stopped or given again: no row lost or doubled, nothing half under the final name."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.score import command
from service.score.errors import ScoreError
from service.score.journal import STATE
from tests.service import tiny
from tests.service.score.test_score import COLOURS, score

ROOT = Path(__file__).parents[3]
IMAGES, BATCH = 40, 4
# A real process that is killed by itself, so that the moment is exact: `sys.argv[1]` says when.
CHILD = """
import argparse, os, signal, sys, time
from service.score import add_arguments, journal, main, outputs, rows

moment, number = sys.argv[1].split(":")
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
append, load, appended = journal.Journal.append, rows.images.load, []

def counted(self, batch, states):
    appended.append(batch)
    if len(appended) > int(number):  # half of a batch, in the middle of a line
        line = journal.ENCODER.encode({**batch[0], journal.STATE: states[0]})
        self._file.write((line + "\\n" + line[:50]).encode())
        self._file.flush()
        kill()
    append(self, batch, states)

def slow(*arguments, **more):
    time.sleep(0.05)
    return load(*arguments, **more)

if moment == "append":
    journal.Journal.append = counted
elif moment == "rename":
    outputs.os.replace = lambda *names: kill()
elif moment == "remove":
    journal.Journal.remove = lambda self: kill()
elif moment == "slow":
    rows.images.load = slow
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(main(parser.parse_args(sys.argv[2:])))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        content = b"damaged" if i % 9 == 4 else tiny.photo(COLOURS[i % len(COLOURS)], (8 + i, 8))
        (folder / f"{i:02d}.png").write_bytes(content)
    return folder


def arguments(photos: Path, out: Path, folder: Path) -> list[str]:
    given = [photos, "--out", out, "--bundle", folder, "--batch-images", BATCH, "--threads", 2]
    return [str(a) for a in given]


def start(moment: str, given: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, moment, *given],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def under_way(given: list[str], partial: Path) -> Iterator["subprocess.Popen[str]"]:
    """A slow process that has rows in its journal, halted until it gets SIGCONT."""
    with start("slow:0", given) as process:
        try:
            while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 1 + BATCH):
                time.sleep(0.005)
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_killed_again_and_again(photos: Path, tiny_bundle: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
    assert score(*arguments(photos, tmp_path / f"whole.{suffix}", tiny_bundle)) == 0
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    folder = tmp_path / "pieces"
    folder.mkdir()
    out = folder / f"o.{suffix}"
    given = arguments(photos, out, tiny_bundle)
    for moment, lines in (("append:0", 2), ("append:2", 11), ("append:3", 24), ("rename:0", 44)):
        with start(moment, given) as process:
            assert process.wait(60) == -signal.SIGKILL, process.communicate()[1]
        assert not out.exists()
        # a header, the batches, and one whole line of each batch that was cut and is done again
        assert Path(f"{out}.partial").read_bytes().count(b"\n") == lines
    assert score(*given) == 0
    assert out.read_bytes() == whole
    assert entries(folder) == [out.name]


def test_killed_from_outside(photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    given = arguments(photos, out, tiny_bundle)
    with under_way(given, Path(f"{out}.partial")) as process:
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert not out.exists()
    assert score(*given) == 0
    assert score(*arguments(photos, tmp_path / "whole.csv", tiny_bundle)) == 0
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_killed_between_the_output_and_the_end(photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The output is whole, and its leftover journal must not stand in for a later run's rows."""
    out = tmp_path / "o.csv"
    given = arguments(photos, out, tiny_bundle)
    with start("remove:0", given) as process:
        assert process.wait(60) == -signal.SIGKILL
    whole = out.read_text()
    assert entries(tmp_path) == ["o.csv", "o.csv.partial"]
    left = (tmp_path / "o.csv.partial").read_bytes(), (tmp_path / "o.csv.partial").stat()
    with pytest.raises(ScoreError, match="exists already"):
        score(*given)
    assert entries(tmp_path) == ["o.csv"]  # the same command, given again, has nothing to go on with
    (tmp_path / "o.csv.partial").write_bytes(left[0])
    os.utime(tmp_path / "o.csv.partial", ns=(left[1].st_atime_ns, left[1].st_mtime_ns))
    changed = (photos / "00.png").read_bytes()
    try:
        (photos / "00.png").write_bytes(tiny.photo((10, 20, 200), (99, 8)))
        assert score(*given, "--overwrite") == 0
    finally:
        (photos / "00.png").write_bytes(changed)
    assert entries(tmp_path) == ["o.csv"]
    assert ",99,8," in out.read_text()
    assert out.read_text().splitlines()[2:] == whole.splitlines()[2:]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(
    photos: Path, tiny_bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "o.jsonl"
    given = arguments(photos, out, tiny_bundle)
    with under_way(given, Path(f"{out}.partial")) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        output, said = process.communicate(timeout=60)
        assert process.returncode == code
    kept = f"the rows so far are in {out}.partial: give the same command again to go on"
    assert said == f"tailguard: stopped by {number.name}; {kept}\n"
    assert output == ""
    assert entries(tmp_path) == ["o.jsonl.partial"]
    assert score(*given) == 0
    paths = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert paths == [str(p) for p in sorted(photos.iterdir())]


def test_two_at_once(photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    given = arguments(photos, out, tiny_bundle)
    with under_way(given, Path(f"{out}.partial")) as process:
        with pytest.raises(ScoreError, match="another process"):
            score(*given)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert len(out.read_text().splitlines()) == 1 + IMAGES


@pytest.fixture
def begun(photos: Path, tiny_bundle: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """The arguments of a run and its journal, which lacks the last two batches."""
    out = tmp_path / "o.jsonl"
    given = arguments(photos, out, tiny_bundle)
    with start(f"append:{IMAGES // BATCH - 2}", given) as process:
        assert process.wait(60) == -signal.SIGKILL
    return given, Path(f"{out}.partial")


def test_a_journal_of_something_else_is_refused(
    begun: tuple[list[str], Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, partial = begun
    before = partial.read_bytes()
    other = tiny.write(tmp_path / "other" / "1", version="2")
    for more, message in (
        (["--operating-point", "ood95"], "begun with operating_point id95, now it is ood95"),
        (["--thresholds", "global"], "begun with thresholds group, now it is global"),
        (["--probabilities"], "begun without the columns probability_red, probability_green, probability_blue: give"),
        (["--bundle", str(other)], "begun with bundle tiny 1, now it is tiny 2"),
    ):
        with pytest.raises(ScoreError, match=f"{message}.*remove it to start over"):
            score(*given, *more)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScoreError, match="begun with working_folder"):
        score(*given)
    partial.write_text("my own file\n")
    with pytest.raises(ScoreError, match="no journal"):
        score(*given)
    assert partial.read_text() == "my own file\n"
    monkeypatch.undo()
    partial.write_bytes(before)
    assert score(*given) == 0


def test_files_came_and_went_between(begun: tuple[list[str], Path], photos: Path, tmp_path: Path) -> None:
    given, partial = begun
    kept = [json.loads(line) for line in partial.read_bytes().splitlines()[1 : 1 + IMAGES - 2 * BATCH]]
    folder = tmp_path / "changed"
    folder.mkdir()
    names = ["00.png", "01.png", "05.png", "39.png", "new.png"]
    listed = [photos / n if n != "new.png" else folder / n for n in names]
    (folder / "new.png").write_bytes(tiny.photo())
    (folder / "list.txt").write_text("\n".join(map(str, reversed(listed))))
    out = tmp_path / "o.jsonl"
    assert score(folder / "list.txt", *given[1:]) == 0
    rows = {row["path"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert list(rows) == [str(p) for p in reversed(listed)]
    assert [r for r in kept if r["path"] in rows and r.pop(STATE)] == [rows[str(p)] for p in listed[:3]]


def test_a_file_replaced_between_gets_a_row_of_its_own(
    begun: tuple[list[str], Path], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It kept the row of the picture that had been there, and one put right the error that it was found with."""
    given, _ = begun
    before = {name: (photos / name).read_bytes() for name in ("00.png", "13.png")}
    try:
        for name, colour in (("00.png", (10, 20, 200)), ("13.png", (220, 30, 30))):
            (photos / name).write_bytes(tiny.photo(colour, (8, 8)))
            os.utime(photos / name, (0, 0))  # as whatever keeps the times of files does
        assert score(*given) == 0
    finally:
        for name, content in before.items():
            (photos / name).write_bytes(content)
    assert "24 of 40 images are in" in capfd.readouterr().err  # the batches of the two are scored again
    rows = {Path(row["path"]).name: row for row in map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())}
    assert (rows["00.png"]["label"], rows["13.png"]["label"], rows["13.png"]["error"]) == ("blue", "red", None)
    assert STATE not in rows["01.png"]


def test_rows_of_the_journal_are_used(
    begun: tuple[list[str], Path], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is done is not done again: a marked row comes out as it is."""
    given, partial = begun
    lines = partial.read_text().splitlines(keepends=True)
    marked = json.loads(lines[1]) | {"error_detail": "marked"}
    partial.write_text("".join([lines[0], json.dumps(marked) + "\n", *lines[2:]]))
    assert score(*given) == 0
    said = capfd.readouterr()
    assert f"tailguard: 32 of 40 images are in {partial} already" in said.err
    assert "o.jsonl: 8 images in" in said.out
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["error_detail"] == "marked"


def test_what_a_disk_or_network_did_not_give_is_tried_again(
    begun: tuple[list[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was an error for ever: a bucket that was away for a minute cost all that was asked of it then."""
    given, partial = begun
    lines = partial.read_text().splitlines(keepends=True)
    failed = json.loads(lines[1]) | {"error": "unreadable", "error_detail": "no network"}
    partial.write_text("".join([lines[0], json.dumps(failed) + "\n", *lines[2:]]))
    assert score(*given) == 0
    assert "28 of 40 images are in" in capfd.readouterr().err
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["error"] is None


@pytest.mark.parametrize("damage", [b'{"path":', b"\0" * 100 + b"\n", b"[1]\n", b'{"label":1}\n'])
def test_a_damaged_end_is_dropped(begun: tuple[list[str], Path], photos: Path, tmp_path: Path, damage: bytes) -> None:
    given, partial = begun
    assert score(*arguments(photos, tmp_path / "whole.jsonl", Path(given[given.index("--bundle") + 1]))) == 0
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:6]) + damage + b"".join(lines[6:8]))
    assert score(*given) == 0
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_killed_within_the_header(begun: tuple[list[str], Path], tmp_path: Path) -> None:
    given, partial = begun
    partial.write_bytes(partial.read_bytes()[:40])
    assert score(*given) == 0
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == IMAGES


def test_a_run_that_fails_before_its_first_row_leaves_no_journal(
    photos: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that does not answer left a journal without rows, which a run with other settings then stumbled on."""

    def no_cluster(*arguments: object) -> Iterator[None]:
        raise ScoreError("the cluster does not answer")
        yield

    monkeypatch.setattr(command, "on_threads", no_cluster)
    out = tmp_path / "out.jsonl"
    with pytest.raises(ScoreError, match="does not answer"):
        score(*arguments(photos, out, tiny_bundle))
    assert entries(tmp_path) == []


def test_a_full_disk_is_one_line(photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    out = tmp_path / "o.csv"
    (tmp_path / ".o.csv.unfinished").symlink_to("/dev/full")
    with pytest.raises(ScoreError, match=r"No space left on device.*give the same command again"):
        score(*arguments(photos, out, tiny_bundle))
    assert entries(tmp_path) == ["o.csv.partial"]
    assert score(*arguments(photos, out, tiny_bundle)) == 0
