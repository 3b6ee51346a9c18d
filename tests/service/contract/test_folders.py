"""A folder appears whole or not at all; what a killed writer left goes, and nothing of a living one."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.contract import folders

WRITE = """
import sys, time
from pathlib import Path
from service.contract import folders
with folders.appearing(Path(sys.argv[1])) as made:
    (made / "graph.onnx").write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writing(tmp_path):
    """A process that has begun to write the folder 1, and stays at it."""
    with subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "1")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        yield process
        process.kill()


def write(out: Path) -> list[str]:
    """The names beside `out` while it is written."""
    with folders.appearing(out) as made:
        (made / "card").touch()
        return sorted(path.name for path in out.parent.iterdir() if path != made)


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path, writing):
    """15 MB of a bundle stayed, hidden, for each export, conversion and page that was killed."""
    (begun,) = tmp_path.iterdir()
    assert write(tmp_path / "1.2") == [begun.name]
    assert write(tmp_path / "1") == sorted(["1.2", begun.name])
    assert (begun / "graph.onnx").read_bytes() == b"half"
    writing.kill()
    writing.wait()
    (tmp_path / "1" / "card").unlink()
    assert write(tmp_path / "1.3") == sorted(["1", "1.2", begun.name])
    assert write(tmp_path / "1") == ["1", "1.2", "1.3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.2", "1.3"]


def test_what_may_be_of_another_machine_stays(tmp_path, monkeypatch):
    """On a network's file system the writer lives perhaps where this machine sees neither its number nor its lock."""
    left = [".1.0123abcd.0123456789ab.partial", ".1.0123abcd.partial"]
    for name in left:
        (tmp_path / name / "examples").mkdir(parents=True)
    assert write(tmp_path / "1") == sorted(left)
    (tmp_path / "1" / "card").unlink()

    def refuse(*_: object) -> None:
        raise OSError("Bad file descriptor")

    monkeypatch.setattr(folders.fcntl, "flock", refuse)  # as NFS does of a folder: nobody may clear what is not locked
    with folders.appearing(tmp_path / "1") as made:
        assert len(made.name) == len(left[1])
    monkeypatch.undo()
    monkeypatch.setattr(folders, "BOOT", tmp_path / "none")
    assert write(tmp_path / "2") == sorted(["1", *left])
