"""Which files of a folder are images: by their bytes, with links, hidden files and what is left out."""

import os
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from service.contract import files


def encoded(form: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (5, 4), (200, 30, 30)).save(data, form)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def names(found: files.ImageFiles, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in found.paths]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_every_kind_is_known_by_its_bytes_alone(folder: Path, form: str) -> None:
    for name in ("picture", "picture.dat", "picture.txt"):
        (folder / name).write_bytes(encoded(form))
    assert names(files.find(folder), folder) == ["picture", "picture.dat", "picture.txt"]


@pytest.mark.parametrize(
    "content",
    [b"", b"BM", b"BMW and Mercedes, a text", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x20ftypisom\0\0\2\0", b"hello"],
)
def test_other_bytes_are_no_image(folder: Path, content: bytes) -> None:
    (folder / "notes.TXT").write_bytes(content)
    (folder / "notes").write_bytes(content)
    found = files.find(folder)
    assert found.paths == []
    assert found.left_out == Counter({".txt": 1, files.NO_SUFFIX: 1})
    (said,) = found.notes("data")
    assert said.startswith("data: left out 2 files that are no images (")


@pytest.mark.parametrize("suffix", [".jpg", ".JFIF", ".jpe", ".heic"])
def test_a_damaged_file_with_an_image_suffix_is_listed_for_its_reader_to_refuse(folder: Path, suffix: str) -> None:
    (folder / f"empty{suffix}").write_bytes(b"")
    assert names(files.find(folder), folder) == [f"empty{suffix}"]


def test_hidden_files_and_folders_are_no_data(folder: Path) -> None:
    kept = encoded("PNG")
    for name in (".ipynb_checkpoints/a.png", "._b.png", "__MACOSX/c.png", "Thumbs.db", "sub/.d/e.png", "sub/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(kept)
    found = files.find(folder)
    assert names(found, folder) == ["sub/f.png"]
    assert found.hidden == 5
    assert not found.left_out
    assert names(files.find(folder, every=True), folder) == ["sub/f.png"]
    assert names(files.find(folder / ".ipynb_checkpoints"), folder) == [".ipynb_checkpoints/a.png"]  # asked for by name


def test_links_are_followed_loops_are_not_and_dead_ones_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(encoded("PNG"))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "one.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "linked" / "up").symlink_to(folder)
    (folder / "dead").symlink_to(tmp_path / "nowhere")
    (folder / "self.png").symlink_to(folder / "self.png")
    found = files.find(folder)
    assert names(found, folder) == ["dead", "linked/a.png", "one.png", "self.png"]
    assert [os.path.relpath(link, folder) for link in found.loops] == ["linked/up"]
    assert "linked/up: not followed" in found.notes(folder)[0]


def test_a_pipe_is_counted_and_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    found = files.find(folder)
    assert (found.paths, found.left_out) == ([], Counter({files.NO_PLAIN_FILE: 1}))


def test_paths_begin_as_given_and_keep_bytes_that_are_not_utf8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(encoded("PNG"))
    monkeypatch.chdir(folder)
    assert files.find(".").paths == [f"./{name}"]


def test_a_folder_that_is_not_there_is_named_as_a_path(tmp_path: Path) -> None:
    assert files.find(tmp_path / "nowhere").paths == [str(tmp_path / "nowhere")]
