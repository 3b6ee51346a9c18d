"""`tailguard review export` and `tailguard review import`: the review as files, with or without a running service."""

import argparse
import sys
import time
from concurrent.futures import Future
from pathlib import Path

from service.errors import TailGuardError
from service.ledger.database import MEMORY, check, connect
from service.ledger.reading import Reader
from service.ledger.rows import FeedbackRecord, Labels
from service.ledger.store import store_at
from service.ledger.tables import Tables
from service.review import export, imports
from service.review.tables import CHUNK_ROWS

MOST_SHOWN = 5  # of the files that are no kept image


class ReviewError(TailGuardError):
    """What was named is not there, or cannot be used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard review`."""
    actions = parser.add_subparsers(dest="action", required=True)
    out = actions.add_parser("export", help="write what people said as folders that fit and train read")
    into = actions.add_parser("import", help="take labels from Label Studio's or FiftyOne's JSON")
    for one in (out, into):
        one.add_argument("--ledger", required=True, help="an SQLite file or a postgresql:// URL, as the service has it")
    out.add_argument("--store", help="of the images (default: the folder beside an SQLite ledger)")
    out.add_argument("--out", required=True, type=Path, help="a new folder")
    out.add_argument("--unlabelled", action="store_true", help="the images without a label, to label them elsewhere")
    out.add_argument("--list", choices=("csv", "parquet"), default="csv", help="of the images (default %(default)s)")
    into.add_argument("file", type=Path, help="images are known by the names that an export gave them")
    into.add_argument("--reviewer", help="who gave the labels, to be noted beside them")


def main(args: argparse.Namespace) -> int:
    """Run it, and say in one line what was done. Raises TailGuardError."""
    _check(args.ledger)
    return _export(args) if args.action == "export" else _import(args)


def _check(where: str) -> None:
    if where == MEMORY or ("://" not in where and not Path(where).is_file()):
        raise ReviewError(f"--ledger={where}: there is no such file: name the ledger of the service")
    check(where)


def _export(args: argparse.Namespace) -> int:
    address = args.store or ("" if "://" in args.ledger else f"{args.ledger}.images")
    if not address:
        raise ReviewError("the images of a PostgreSQL ledger are in a store of their own: name it with --store")
    if "://" not in address and not Path(address).is_dir():
        raise ReviewError(f"{address} is not a folder: name the store of the ledger's images with --store")
    reader = Reader(args.ledger, store_at(address))
    try:
        count = export.folder(reader, args.out, unlabelled=args.unlabelled, parquet=args.list == "parquet")
    finally:
        reader.close()
    listed = export.PARQUET_LIST if args.list == "parquet" else export.LIST
    print(f"written: {args.out}, {count} images and {listed}")
    return 0


def _import(args: argparse.Namespace) -> int:
    try:
        given = imports.read(args.file.read_bytes())
    except OSError as error:
        raise ReviewError(f"{args.file} cannot be read: {error.strerror}") from error
    database = connect(args.ledger)
    count = 0
    try:
        tables = Tables(database)
        plan = imports.plan(database, given)
        for truth, rows in plan.labels.items():
            for start in range(0, len(rows), CHUNK_ROWS):  # each in one transaction: what is done stays done
                answer: Future[list[FeedbackRecord]] = Future()
                part = rows[start : start + CHUNK_ROWS]
                written = tables.write([Labels(time.time(), part, truth, "import", None, args.reviewer, answer)])
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
