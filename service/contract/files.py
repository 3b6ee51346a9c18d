"""Which files of a folder are images: one answer for training, audit, calibration and bulk scoring.

    found = find("photos")
    found.paths          # every image file below photos/, sorted
    found.left_out       # Counter({".txt": 3, ".db": 1})

A file is an image by its first bytes; its name does not matter. A file whose name ends like an image's and whose bytes
are not one is listed too, so that its reader refuses it by name instead of dropping it without a word.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass

HEAD_BYTES = 32  # enough for every signature below
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif", ".avifs",
    ".heic", ".heif", ".hif",
)  # fmt: skip
SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a", b"GIF89a",
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",  # TIFF and BigTIFF
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",  # JPEG 2000: listed, and refused by name
    b"\0\0\0\x0cJXL \r\n\x87\n",  # JPEG XL: likewise
)  # fmt: skip
BMP_HEADERS_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)  # b"BM" alone begins many a text
ISO_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
NO_SUFFIX, NO_PLAIN_FILE = "(no suffix)", "(pipe, socket or device)"


@dataclass(frozen=True)
class ImageFiles:
    """What `find` saw below a folder. Two of them add up."""

    paths: list[str]
    """Image files, and what cannot be looked into (dead links, folders without permission), whose reading gives the
    system's reason; sorted."""
    left_out: Counter[str]
    """Suffix → files that are no images."""
    hidden: int
    """Hidden files and folders; what is inside a hidden folder is not counted."""
    loops: list[str]
    """Links to a folder that was searched already: not followed."""

    def notes(self, folder: str | os.PathLike[str]) -> list[str]:
        """Sentences for a person about what was left out below `folder`; empty where nothing was."""
        notes = []
        if n := self.left_out.total():
            what = "file that is no image" if n == 1 else "files that are no images"
            notes.append(f"{folder}: left out {n} {what} ({counted(self.left_out)})")
        if self.hidden:
            notes.append(hidden_note(folder, self.hidden))
        return notes + [
            f"{link}: not followed, the link leads to a folder that is searched already" for link in self.loops
        ]

    def __add__(self, other: "ImageFiles") -> "ImageFiles":
        return ImageFiles(
            self.paths + other.paths,
            self.left_out + other.left_out,
            self.hidden + other.hidden,
            self.loops + other.loops,
        )


def counted(suffixes: Counter[str]) -> str:
    """Suffixes and how many files have each, the most frequent first."""
    return ", ".join(f"{suffix} {k}" for suffix, k in suffixes.most_common())


def hidden_note(folder: str | os.PathLike[str], hidden: int) -> str:
    """That so many hidden files and folders below `folder` were left out."""
    return f"{folder}: left out {hidden} hidden {'item' if hidden == 1 else 'items'}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to the system or to a tool, and is no data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (its first HEAD_BYTES, or all it has) is an image of a known kind."""
    if head.startswith(SIGNATURES):
        return True
    if head[:2] == b"BM":
        return len(head) >= 18 and int.from_bytes(head[14:18], "little") in BMP_HEADERS_BYTES
    if head[4:8] == b"ftyp":
        return head[8:12] in ISO_BRANDS
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def find(folder: str | os.PathLike[str], *, every: bool = False) -> ImageFiles:
    """All image files below `folder`; with `every`, all files but hidden ones. Links are followed.

    Paths begin with `folder` as given. A name that is not UTF-8 keeps its bytes by surrogate escapes.
    """
    paths: list[str] = []
    left_out: Counter[str] = Counter()
    hidden, loops, searched = 0, [], set()
    walk = os.walk(folder, onerror=lambda error: paths.append(str(error.filename)), followlinks=True)
    for root, folders, names in walk:
        real = os.path.realpath(root)
        if real in searched:
            loops.append(root)
            folders.clear()
            continue
        searched.add(real)
        hidden += sum(map(is_hidden, folders)) + sum(map(is_hidden, names))
        folders[:] = sorted(name for name in folders if not is_hidden(name))  # the same order on every disk
        for name in names:
            if is_hidden(name):
                continue
            path = os.path.join(root, name)
            if every or (reason := _why_not(path)) is None:
                paths.append(path)
            else:
                left_out[reason] += 1
    return ImageFiles(sorted(paths), left_out, hidden, loops)


def _why_not(path: str) -> str | None:
    """None where `path` is an image or cannot be looked into; else the kind under which it is left out."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return NO_PLAIN_FILE
        if suffix in SUFFIXES:
            return None
        with open(path, "rb") as file:
            return None if is_image(file.read(HEAD_BYTES)) else suffix or NO_SUFFIX
    except OSError:
        return None
