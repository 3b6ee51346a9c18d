"""Names of classes that a person makes up, and the folders that classes get in an export.

A new name must look the same to everybody and be the name of a folder on every system; what does not is refused with
the reason. A class that a model has already may be called anything: what no folder may be called is written as %XX.
"""

import unicodedata
from collections.abc import Collection, Iterable

from service.contract.bundle import OUTLIER_LABEL, spelling
from service.errors import InvalidParameter

MAX_CHARACTERS = 100
MAX_BYTES = 200  # as UTF-8; file systems take 255
SEPARATORS = '/\\:*?"<>|%'  # of paths on one system or another; % because folder names are written with it
FORMULA = "=+@\uff1d\uff0b\uff20"  # and - below; the wide forms count as well
RESERVED = {OUTLIER_LABEL, "outliers", "ood", "unsure", "not sure", "withdrawn", "new", "none", "train", "val", "test"}
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # of Windows
SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}  # readers skip them


def checked(name: str, known: Collection[str] = ()) -> str:
    """A new class name in Unicode's form NFC, or the known name of which it is another spelling.

    Raises InvalidParameter, naming what is wrong, for a name that cannot be shown or stored safely.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split(" ")))
    shown = ascii(name[:60])
    if name != name.strip() or not name:
        raise InvalidParameter(f"label={shown} is no name for a class: it is empty, or blanks stand around it")
    if len(name) > MAX_CHARACTERS or len(name.encode("utf-8", "replace")) > MAX_BYTES:
        raise InvalidParameter(
            f"label={shown}… has {len(name)} characters: a name has at most {MAX_CHARACTERS}, and {MAX_BYTES} bytes"
        )
    bad = [c for c in name if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")]
    if bad:  # control characters, marks that turn the direction of text, surrogates, private and unassigned characters
        raise InvalidParameter(f"label={shown} holds {bad[0]!a}, which cannot be seen: leave it out")
    if found := [c for c in name if c in SEPARATORS]:
        raise InvalidParameter(f"label={shown} holds {found[0]!r}, which no folder may: leave it out")
    if name[0] in FORMULA:  # it stands at the beginning of a field in labels.csv
        raise InvalidParameter(f"label={shown} is a formula to a spreadsheet: begin it with another character")
    folded = name.casefold()
    if folded in RESERVED:
        raise InvalidParameter(f"label={shown} means something else here: say what the images show")
    if name[0] in ".-" or name[-1] == "." or folded.partition(".")[0] in DEVICES or folded in SYSTEM:
        raise InvalidParameter(f"label={shown} cannot be the name of a folder on every system: call it otherwise")
    return name if name in known else {spelling(other): other for other in known}.get(spelling(name), name)


def folders(labels: Iterable[str]) -> dict[str, str]:
    """The relative folder of each class. No two share one, none leads out of the export, none lies in another's.

    A / in a name leads one folder deeper, as training reads nested classes, unless that is another class's folder: then
    training would take the two for one, and it is written as %2F.
    """
    found = {label: folder(label) for label in labels}
    taken = {path.casefold() for path in found.values()}
    for label, path in found.items():
        parts = path.casefold().split("/")
        if any("/".join(parts[:n]) in taken for n in range(1, len(parts))):
            found[label] = path.replace("/", "%2F")
    return found


def folder(name: str) -> str:
    """The folders of a name, each safe on every system, from which the name can be had back."""
    return "/".join(_part(part) for part in name.split("/"))


def _part(part: str) -> str:
    """One folder's name. `%` begins what is written as bytes, so that the way back is one."""
    folded = part.casefold()
    if not part:
        return "%"
    if part[0] == "." or folded in SYSTEM or folded.partition(".")[0] in DEVICES:
        return _escaped(part[0]) + _safe(part[1:])
    return _safe(part)


def _safe(part: str) -> str:
    last = len(part) - 1
    return "".join(
        _escaped(c) if c in SEPARATORS or unicodedata.category(c)[0] == "C" or (i == last and c in ". ") else c
        for i, c in enumerate(part)
    )


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
