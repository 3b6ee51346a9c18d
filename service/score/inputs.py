"""What to score: folders, patterns and lists to the paths of the rows, in their order."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from service.contract import files
from service.score import remote
from service.score.errors import ScoreError

LIST_SUFFIXES = (".txt", ".lst")
BOM, UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def paths(inputs: Sequence[str], *, all_files: bool, own: Sequence[Path] = ()) -> list[str]:
    """The paths of every input, as given: a folder or pattern in sorted order, a list in its own, `-` from stdin.

    A folder is searched with its subfolders as `service.contract.files.find` does, for images or, with `all_files`, for
    every file. `own` are files that this command writes, which are no input. A name that is not UTF-8 keeps its bytes
    by surrogate escapes. What was left out, and an input with [ ] that was taken as a pattern, are named on stderr.
    Raises ScoreError for an input that gives no path.
    """
    expanded: list[str] = []
    written = {os.path.abspath(path): path.name for path in own}
    names = tuple(written.values())  # looked at first: of a million paths the absolute ones take seconds
    for given in inputs:
        found = _expand(given, all_files)
        more = [path for path in found if not path.endswith(names) or os.path.abspath(path) not in written]
        if not more and found != [given]:  # a shell that expands photos/* gives each file by itself
            raise ScoreError(_nothing(given, all_files))
        expanded += more
    if not expanded:
        raise ScoreError(f"{', '.join(inputs)}: this command writes that itself: name what is to be scored")
    return expanded


def _expand(given: str, all_files: bool) -> list[str]:
    if given == "-":
        if sys.stdin is None:  # as Python has it where it is closed
            raise ScoreError("stdin is closed: give one path per line there, or name a list")
        return _lines(sys.stdin.buffer.read())
    if remote.is_remote(given):
        return remote.find(given, every=all_files, say=_say)
    if os.path.isdir(given):
        return _below(given, all_files)
    if os.path.isfile(given) and given.lower().endswith(LIST_SUFFIXES):
        try:
            return _lines(Path(given).read_bytes())
        except OSError as error:
            raise ScoreError(f"the list {given} cannot be read ({error.strerror})") from error
    if os.path.lexists(given):
        return [given]
    matches = sorted(p for p in glob.glob(given, recursive=True) if not os.path.isdir(p))  # `**` matches folders, too
    if matches and "[" in given:
        _say(
            f"no file is called {given}: [ ] was taken as a pattern, which matches {len(matches)} files; "
            f"for the name itself write {glob.escape(given)}"
        )
    return matches


def _lines(content: bytes) -> list[str]:
    if content.startswith(UTF_16):  # every path would be one that no file can have
        raise ScoreError(
            "the list is in UTF-16, as PowerShell writes with >: save it as UTF-8 (Out-File -Encoding utf8)"
        )
    lines = (line.rstrip(b"\r") for line in content.removeprefix(BOM).split(b"\n"))
    return [os.fsdecode(line) for line in lines if line]


def _below(folder: str, all_files: bool) -> list[str]:
    found = files.find(folder, every=all_files)
    for note in found.notes(folder):
        _say(note)
    return found.paths


def _say(note: str) -> None:
    print(f"tailguard: {os.fsencode(note).decode('utf-8', 'backslashreplace')}", file=sys.stderr)


def _nothing(given: str, all_files: bool) -> str:
    if given == "-":
        return "stdin held no path: give one path per line"
    if os.path.isdir(given) or remote.is_remote(given):
        return f"{given} holds no file" if all_files else f"{given} holds no image: --all-files takes every file"
    if os.path.isfile(given):
        return f"the list {given} holds no path: give one path per line"
    what = " ([ ] stand for one character of a set)" if "[" in given else ""
    return f"{given} is no folder and no file, and as a pattern it matches nothing{what}"
