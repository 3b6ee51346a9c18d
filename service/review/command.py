"""`tailguard review export` and `tailguard review import`: the review as files, with or without a running service."""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

from service.contract import bundle
from service.contract.lines import one_line
from service.errors import TailGuardError
from service.ledger.database import MEMORY, check, connect
from service.ledger.reading import Reader
from service.ledger.rows import FeedbackRecord, Labels
from service.ledger.schema import of_database, require_ours
from service.ledger.store import store_at
from service.ledger.tables import Tables
from service.review import export, imports, listing
from service.review.tables import CHUNK_ROWS

MOST_SHOWN = 5  # of the files that are no kept image


class ReviewError(TailGuardError):
    """What was named is not there, or cannot be used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard review`."""
    actions = parser.add_subparsers(dest="action", required=True)
    out = actions.add_parser("export", help="write what people said as folders that fit and train read")
    into = actions.add_parser("import", help="take labels from Label Studio's or FiftyOne's JSON")
    ledger = "an SQLite file or a postgresql:// URL, as the service has it"
    out.add_argument("--ledger", required=True, help=ledger)
    out.add_argument("--store", help="of the images (default: the folder beside an SQLite ledger)")
    out.add_argument("--out", required=True, type=Path, help="a new folder")
    out.add_argument("--unlabelled", action="store_true", help="the images without a label, to label them elsewhere")
    out.add_argument("--list", choices=("csv", "parquet"), default="csv", help="of the images (default %(default)s)")
    into.add_argument("file", type=Path, help="images are known by the names that an export or score gave them")
    where = into.add_mutually_exclusive_group(required=True)
    where.add_argument("--ledger", help=f"{ledger}: label its kept images")
    where.add_argument("--out", type=Path, metavar="LIST", help="a new .csv or .jsonl of the files that were scored, "
                       "which fit, train and learn read")  # fmt: skip
    into.add_argument("--image-root", type=Path, metavar="DIR", help="with --out: as for score")
    into.add_argument("--bundle", metavar="DIR", help="with --out: whose classes are known; others are new")
    into.add_argument("--reviewer", help="who gave the labels, to be noted beside them")


def main(args: argparse.Namespace) -> int:
    """Run it, and say in one line what was done. Raises TailGuardError."""
    if args.action == "import" and args.out:
        return _list(args)
    _check(args.ledger)
    if args.action == "import" and (args.image_root or args.bundle):
        raise ReviewError("--image-root and --bundle go with --out: a ledger knows its images and classes")
    try:
        return _export(args) if args.action == "export" else _import(args)
    except Exception as error:  # each driver has its own
        if not of_database(error):
            raise
        raise ReviewError(
            f"the ledger cannot be used ({one_line(error)}): name the one that the service writes, or try again"
        ) from error


def _check(where: str) -> None:
    if where == MEMORY or ("://" not in where and not Path(where).is_file()):
        raise ReviewError(f"--ledger={where}: there is no such file: name the ledger of the service")
    check(where, "--ledger")
    require_ours(where, "--ledger")  # an import makes the tables that are not there


def _export(args: argparse.Namespace) -> int:
    address = args.store or ("" if "://" in args.ledger else f"{args.ledger}.images")
    if not address:
        raise ReviewError("the images of a PostgreSQL ledger are in a store of their own: name it with --store")
    if "://" not in address and not Path(address).is_dir():
        raise ReviewError(f"{address} is not a folder: name the store of the ledger's images with --store")
    reader = Reader(args.ledger, store_at(address))
    lost: list[str] = []
    try:
        count = export.folder(reader, args.out, unlabelled=args.unlabelled, parquet=args.list == "parquet", lost=lost)
    finally:
        reader.close()
    listed = export.PARQUET_LIST if args.list == "parquet" else export.LIST
    print(f"written: {args.out}, {count} images and {listed}")
    if lost:
        print(f"{len(lost)} images are left out, {address} does not hold them as they were sent: "
              f"{', '.join(lost[:MOST_SHOWN])}", file=sys.stderr)  # fmt: skip
    return 0


def _given(file: Path) -> list[imports.Given]:
    try:
        return imports.read(file.read_bytes())
    except OSError as error:
        raise ReviewError(f"{file} cannot be read: {error.strerror}") from error


def _list(args: argparse.Namespace) -> int:
    out: Path = args.out
    if out.suffix.lower() not in listing.SUFFIXES:
        raise ReviewError(f"--out {out}: name it {' or '.join(listing.SUFFIXES)}")
    if args.image_root and not args.image_root.is_dir():
        raise ReviewError(f"--image-root {args.image_root} is not a folder")
    classes = [known.name for known in bundle.read(args.bundle).classes] if args.bundle else None
    plan = listing.plan(_given(args.file), args.image_root, classes)
    if plan.unknown:
        print(f"{len(plan.unknown)} files are not here, see --image-root: {', '.join(plan.unknown[:MOST_SHOWN])}",
              file=sys.stderr)  # fmt: skip
    if not plan.labels:
        raise ReviewError(f"{args.file} has no label of a file that is here: nothing is written")
    try:
        listing.write(out, plan.labels, args.reviewer)
    except FileExistsError as error:
        raise ReviewError(f"{out} exists: name a new list, an import never changes one") from error
    except OSError as error:
        raise ReviewError(f"{out} cannot be written: {error.strerror}") from error
    kinds = Counter(shown.kind for shown in plan.labels.values())
    new = f", {kinds['new']} of new ones" if classes is not None else ""
    print(f"written: {out}, {len(plan.labels)} images, {kinds['outlier']} of them outliers{new}; "
          f"{plan.skipped} entries have no label")  # fmt: skip
    return 0


def _import(args: argparse.Namespace) -> int:
    given = _given(args.file)
    database = connect(args.ledger)
    count = 0
    try:
        tables = Tables(database)
        plan = imports.plan(database, given)
        for truth, rows in plan.labels.items():
            for start in range(0, len(rows), CHUNK_ROWS):  # each in one transaction: what is done stays done
                answer: Future[list[FeedbackRecord]] = Future()
                part = rows[start : start + CHUNK_ROWS]
                written = tables.write([Labels(time.time(), part, truth, "import", None, args.reviewer, answer, False)])
                done = written.answers[0][1]
                if isinstance(done, TailGuardError):
                    raise done
                count += len(done)
    finally:
        database.close()
    print(f"labelled: {count} images; {plan.already} had a label, {plan.skipped} entries have none")
    if plan.unknown:
        print(f"{len(plan.unknown)} files are no kept image: {', '.join(plan.unknown[:MOST_SHOWN])}", file=sys.stderr)
    return 0 if count or plan.already else 1
