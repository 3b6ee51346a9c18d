"""Files that are mapped into memory: no room, cut off, and a process killed while it wrote."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from service.contract.keys import content_key
from tests.training import pictures
from training.data import mapped, pixels
from training.data.readers import DataError


def test_no_room_is_an_error_and_not_the_end_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.*a\.npy"):
        mapped.created(tmp_path / "a.npy", np.uint8, (4, 8))
    assert not list(tmp_path.iterdir())


def test_room_is_taken_at_once(tmp_path: Path) -> None:
    mapped.created(tmp_path / "a.npy", np.uint8, (1 << 20,))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1 << 20


def test_a_file_that_is_cut_off_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    assert not mapped.holds(path, (4,))
    mapped.created(path, np.float32, (4, 8))
    assert mapped.holds(path, (4,))
    assert not mapped.holds(path, (5,))
    for size in (path.stat().st_size - 1, 128, 50, 0):
        os.truncate(path, size)
        assert not mapped.holds(path, (4,))


def test_pixels_are_written_again_where_the_file_or_its_note_is_cut_off(tmp_path: Path) -> None:
    paths = [str(pictures.save(tmp_path / f"{i}.png", i)) for i in range(3)]
    keys = np.array([content_key(Path(path).read_bytes()) for path in paths], np.uint64)
    cache = tmp_path / "cache"
    wanted = np.array(pixels.pixel_array(paths, keys, 16, cache))
    (whole,) = cache.iterdir()
    os.truncate(whole, whole.stat().st_size - 5)
    np.testing.assert_array_equal(pixels.pixel_array(paths, keys, 16, cache), wanted)
    whole.rename(begun := whole.with_suffix(".partial.npy"))
    begun.with_suffix(".done").write_text("")  # killed while it was written, by an earlier version
    np.testing.assert_array_equal(pixels.pixel_array(paths, keys, 16, cache), wanted)
    assert [*cache.iterdir()] == [whole]


def test_a_file_that_has_changed_since_it_was_scanned_is_not_kept_as_what_it_was(tmp_path: Path) -> None:
    paths = [str(pictures.save(tmp_path / f"{i}.png", i)) for i in range(3)]
    keys = np.array([content_key(Path(path).read_bytes()) for path in paths], np.uint64)
    pictures.save(tmp_path / "1.png", 7)
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image \(it is not the file that was read before"):
        pixels.pixel_array(paths, keys, 16, tmp_path / "cache")
