"""What people said, as folders that `tailguard fit` and `train` read: a folder on disk, or a stream in tar's format.

    OUT/train/<class>/<first 16 digits of the image key>.<suffix>
    OUT/outliers/…
    OUT/unlabelled/…     with `unlabelled` alone: kept images without a label, to be labelled elsewhere
    OUT/labels.csv       one line for each image, COLUMNS; an outlier has an empty label. Or labels.parquet, the same

An image that came several times is there once, with the last label that it was given. 'unsure' is left out.
"""

import io
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from service.contract.comma_separated import CommaSeparated
from service.contract.folders import appearing
from service.errors import TailGuardError
from service.ledger.reading import DecidedRow, Reader
from service.review.kinds import kind_of
from service.review.names import folders

COLUMNS = (
    "path", "label", "kind", "request_id", "index", "image_key", "predicted", "decision", "score", "p_value",
    "model_name", "model_version", "model_sha256", "keep_probability", "sampled", "reviewer", "source", "group",
    "labelled_at", "time",
)  # fmt: skip
LIST, PARQUET_LIST = "labels.csv", "labels.parquet"
NUMBERS = {"index": "int64", "sampled": "int64"} | dict.fromkeys(
    ("score", "p_value", "keep_probability", "labelled_at", "time"), "float64"
)  # of COLUMNS; the others are text
KINDS = ("class", "new", "outlier")
IN_MEMORY_BYTES = 2**20  # of the list, before it goes to a temporary file
KEY_DIGITS = 16

log = structlog.get_logger()


class ExportError(TailGuardError):
    """The folder cannot be written."""


class File(NamedTuple):
    """One file of an export. `time`: seconds since the epoch."""

    path: str
    data: bytes
    time: float


def files(reader: Reader, text: IO[str], lost: list[str], *, unlabelled: bool = False) -> Iterator[File]:
    """The image files, one after the other; the list goes to `text` meanwhile. `unlabelled`: those without a label.
    To `lost` go the keys of those that the store does not hold, or not as they were sent.

    An image that is deleted meanwhile, whose label is taken back, or that gets one of a class without a folder, is in
    neither.
    """
    chosen, classes = _chosen(reader, unlabelled)
    paths = folders(classes)
    table = CommaSeparated(text)
    table.row(COLUMNS)
    for number in chosen:
        row = reader.row(number)
        if row is None or row.image_key is None or not _wanted(row, unlabelled):
            continue
        if (data := _image(reader, row.image_key)) is None:
            lost.append(row.image_key)
            continue
        label = "" if row.label is None or row.label.kind == "outlier" else row.label.label
        if label and label not in paths:
            continue  # given a moment ago: no folder was chosen for it, and the outliers' is not its
        where = "unlabelled" if row.label is None else f"train/{paths[label]}" if label else "outliers"
        path = f"{where}/{row.image_key[:KEY_DIGITS]}{kind_of(data)[0]}"
        table.row(_line(path, label, row))
        yield File(path, data, row.time)


def _image(reader: Reader, key: str) -> bytes | None:
    try:
        return reader.image(key)
    except Exception as error:  # of a disk, a network, a driver
        raise ExportError(f"the store of the images cannot be read: {error}") from error


def tar(reader: Reader) -> Iterator[bytes]:
    """The labelled images and their list as a tar file, piece by piece: one image is in memory at a time."""
    lost: list[str] = []
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spooled:
        text = io.TextIOWrapper(spooled, "utf-8", newline="", write_through=True)
        for file in files(reader, text, lost):
            yield _header(file.path, len(file.data), file.time)
            yield file.data
            yield _padding(len(file.data))
        size = spooled.tell()
        spooled.seek(0)
        yield _header(LIST, size, 0)
        while piece := spooled.read(2**16):
            yield piece
        yield _padding(size)
        yield bytes(2 * tarfile.BLOCKSIZE)
        text.detach()
    if lost:
        log.warning("an export lacks labelled images that the store does not hold", images=len(lost), first=lost[0])


def folder(
    reader: Reader, out: Path, *, unlabelled: bool = False, parquet: bool = False, lost: list[str] | None = None
) -> int:
    """Write the export to a new folder, which appears when it is whole; the number of images. `lost`: as for files.

    Raises ExportError where it exists already, where there is nothing to write, and where a list as `parquet` is asked
    for and pyarrow is missing.
    """
    if parquet and find_spec("pyarrow") is None:
        raise ExportError("a list as Parquet needs pyarrow: pip install 'tailguard[parquet]', or take --list csv")
    if out.exists():
        raise ExportError(f"{out} exists: name a new folder, an export never changes one")
    if not out.absolute().parent.is_dir():
        raise ExportError(f"{out.absolute().parent} is not a folder: make it first")
    count = 0
    try:
        with appearing(out) as partial:
            with (partial / LIST).open("w", encoding="utf-8", newline="") as text:
                for file in files(reader, text, [] if lost is None else lost, unlabelled=unlabelled):
                    path = partial / file.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.data)
                    count += 1
            if not count:
                which = "every" if unlabelled else "no"
                raise ExportError(f"there is no image to export: {which} kept image has a label, or their files are not"
                                  " in the store")  # fmt: skip
            if parquet:
                _to_parquet(partial)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}") from error
    return count


def _to_parquet(folder: Path) -> None:
    """The list of an export with typed columns, in the place of the CSV file; what is empty in a number is null."""
    import pyarrow
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    types = {name: getattr(pyarrow, NUMBERS.get(name, "string"))() for name in COLUMNS}
    read = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    within = arrow_csv.ParseOptions(newlines_in_values=True)
    parquet.write_table(arrow_csv.read_csv(folder / LIST, parse_options=within, convert_options=read),
                        folder / PARQUET_LIST)  # fmt: skip
    (folder / LIST).unlink()


def _chosen(reader: Reader, unlabelled: bool) -> tuple[list[int], set[str]]:
    """The row of each image to export, in the order of the ledger, and the classes of all."""
    latest: dict[str, tuple[int, int]] = {}
    labels: dict[int, str] = {}
    for row in _all(reader, unlabelled):
        if row.image_key is not None and _wanted(row, unlabelled):
            given = 0 if row.label is None else row.label.number
            latest[row.image_key] = max(latest.get(row.image_key, (-1, -1)), (given, row.row))
            if row.label is not None and row.label.kind in ("class", "new"):
                labels[row.row] = row.label.label
    chosen = sorted(number for _, number in latest.values())
    return chosen, {labels[number] for number in chosen if number in labels}


def _all(reader: Reader, unlabelled: bool) -> Iterator[DecidedRow]:
    if not unlabelled:
        yield from reader.labelled()
        return
    after = 0
    while rows := reader.kept(after):
        after = rows[-1].row
        yield from rows


def _wanted(row: DecidedRow, unlabelled: bool) -> bool:
    return row.label is None if unlabelled else row.label is not None and row.label.kind in KINDS


def _line(path: str, label: str, row: DecidedRow) -> tuple[object, ...]:
    given = row.label
    said = ("", "", "", "") if given is None else (given.reviewer, given.source, given.group_id, given.time)
    return (
        path, label, "" if given is None else given.kind, row.request_id, row.position, row.image_key, row.predicted,
        row.decision, row.score, row.p_value, *row.model, row.keep_probability, int(row.sampled), *said, row.time,
    )  # fmt: skip


def _header(path: str, size: int, time: float) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = size, int(time), 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
