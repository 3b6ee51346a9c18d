"""What to score: folders, patterns and lists to the paths of the rows, in their order."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from service.score.errors import ScoreError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
LIST_SUFFIXES = (".txt", ".lst")
BOM = b"\xef\xbb\xbf"


def paths(inputs: Sequence[str], *, all_files: bool, own: Sequence[Path] = ()) -> list[str]:
    """The paths of every input, as given: a folder or pattern in sorted order, a list in its own, `-` from stdin.

    A folder is searched with its subfolders for image suffixes, or every file with `all_files`; linked folders are
    followed, each folder once. `own` are files of this command that lie about and are no input. A name that is not
    UTF-8 is kept by surrogate escapes. Raises ScoreError for an input that gives no path.
    """
    found: list[str] = []
    mine = {os.path.abspath(path) for path in own}
    for given in inputs:
        if not (expanded := _expand(given, all_files, mine)):
            raise ScoreError(_nothing(given, all_files))
        found += expanded
    return found


def _expand(given: str, all_files: bool, own: set[str]) -> list[str]:
    if given == "-":
        return _lines(sys.stdin.buffer.read())
    if os.path.isdir(given):
        return _walk(given, all_files, own)
    if os.path.isfile(given) and given.lower().endswith(LIST_SUFFIXES):
        try:
            return _lines(Path(given).read_bytes())
        except OSError as error:
            raise ScoreError(f"the list {given} cannot be read ({error.strerror})") from error
    if os.path.lexists(given):
        return [given]
    matches = glob.glob(given, recursive=True)
    return sorted(p for p in matches if _is_image(p) or not os.path.isdir(p))  # `**` matches plain folders, too


def _lines(content: bytes) -> list[str]:
    lines = (line.rstrip(b"\r") for line in content.removeprefix(BOM).split(b"\n"))
    return [os.fsdecode(line) for line in lines if line]


def _walk(folder: str, all_files: bool, own: set[str]) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()

    def unlisted(error: OSError) -> None:  # becomes a path of its own, so that it gets a row and is not passed over
        found.append(str(error.filename))

    for root, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()  # links made a circle
            continue
        seen.add(real)
        folders.sort()  # which of two names a folder is found by must not hang on the order of the disk
        found += [os.path.join(root, name) for name in names if all_files or _is_image(name)]
    return sorted(path for path in found if not all_files or os.path.abspath(path) not in own)


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _nothing(given: str, all_files: bool) -> str:
    if given == "-":
        return "stdin held no path: give one path per line"
    if os.path.isdir(given):
        if all_files:
            return f"{given} holds no file"
        return f"{given} holds no file with one of {', '.join(IMAGE_SUFFIXES)}: --all-files takes every file"
    if os.path.isfile(given):
        return f"the list {given} holds no path: give one path per line"
    return f"{given} is no folder and no file, and as a pattern it matches nothing"
