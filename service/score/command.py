"""The score command: its arguments, and a run from the inputs to the output file."""

import argparse
import functools
import hashlib
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

from service import process, settings
from service.bundles import addresses, kinds
from service.contract import bundle, cluster
from service.inference.engine import Engine
from service.score import inputs, labelling, on_ray, outputs
from service.score.errors import ScoreError
from service.score.journal import Journal
from service.score.likeness import likeness
from service.score.plan import Plan, Run, on_threads, rows_of
from service.score.rows import Scorer
from service.score.stopping import Interrupted, Stop, stoppable
from service.score.summary import Summary
from service.settings import PREFIX, Settings

BATCH_IMAGES = 16  # unless asked otherwise: nobody waits for one image here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard score`."""
    parser.add_argument(
        "inputs", nargs="+", metavar="DIR|GLOB|LIST",
        help="a folder (with its subfolders), a pattern, a .txt or .lst file with one path per line, or - for stdin; "
        "folders and patterns of an object store too (s3://…)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="results.parquet, .csv or .jsonl; .json for --format")
    parser.add_argument("--format", choices=labelling.FORMATS, help="tasks for Label Studio, or a data set of FiftyOne")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="with --format: the folder that the tool's paths count from"
    )
    parser.add_argument(
        "--image-prefix", metavar="URL", help=f"before each path for Label Studio (default {labelling.LOCAL_FILES})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--all-files", action="store_true", help="every file of a folder, whatever it holds")
    parser.add_argument("--probabilities", action="store_true", help="one more column for each class")
    parser.add_argument(
        "--neighbours", type=_positive, default=0, metavar="N", help="columns with the N nearest training examples"
    )
    parser.add_argument("--embedding", action="store_true", help="one more column, a list of numbers")
    parser.add_argument("--set", type=_level, metavar="LEVEL", help="columns with a conformal set of classes, 0.9 say")
    parser.add_argument("--bundle", help=f"a folder, or an address such as s3://models/shop/3; default: {PREFIX}BUNDLE")
    parser.add_argument("--operating-point", help=f"default: {PREFIX}OPERATING_POINT, else the manifest's")
    parser.add_argument("--thresholds", choices=("group", "global"), help="default: as for the service")
    parser.add_argument("--threads", type=_positive, help="default: one for each CPU; with --on ray, of the cluster")
    parser.add_argument("--on", choices=("here", "ray"), default="here", help="ray: RAY_ADDRESS, or local")
    parser.add_argument("--batch-images", type=_positive, help=f"default: {PREFIX}MAX_BATCH_IMAGES")


def main(args: argparse.Namespace) -> int:
    """Score every file and print the summary. The exit code: 0, or 128 + the signal that stopped it.

    Raises BundleError or TailGuardError, one clear line, when it refuses or cannot go on; the rows so far are kept.
    """
    process.quiet()
    partial = args.out.with_name(args.out.name + ".partial")
    with stoppable() as stop:
        try:
            _score(args, partial, stop)
        except Interrupted as stopped:
            name = signal.Signals(stopped.number).name
            rest = f"the rows so far are in {partial}: give the same command again to go on"
            print(f"tailguard: stopped by {name}; {rest if partial.exists() else 'nothing was begun'}", file=sys.stderr)
            return 128 + stopped.number
    return 0


def _score(args: argparse.Namespace, partial: Path, stop: Stop) -> None:
    out: Path = args.out
    form, places = args.format, _places(args)
    outputs.writer(out, form)
    _check(out, partial, args.overwrite)
    if args.on == "ray":
        cluster.require_ray()
    config = _configure(args)
    own = (out, partial, outputs.temporary(out), outputs.interface_path(out))
    paths = inputs.paths(args.inputs, all_files=args.all_files, own=own)
    if form is not None:
        places.check(paths, form)
    stop.check()
    folder = addresses.fetched(config.bundle, config.bundle_cache)
    make = functools.partial(
        _scorer, config=config, probabilities=args.probabilities, level=args.set, neighbours=args.neighbours,
        embedding=args.embedding,
    )  # fmt: skip
    scorer = make(folder)
    stop.check()
    header = _header(folder, scorer)
    threads = config.decode_threads if config.provider == "cuda" else config.inference_threads
    run: Run = functools.partial(on_threads, scorer, threads, stop)
    if args.on == "ray":
        run = functools.partial(on_ray.in_order, folder, scorer.engine.manifest, make, args.threads)
    summary = Summary()
    started = perf_counter()
    try:
        if form == "label-studio":
            outputs.write_interface(out, [info.name for info in scorer.engine.manifest.classes], args.overwrite)
        _drop_leftover(out, partial)  # not before the inputs are known, among which a shell's pattern may name it
        with Journal(partial, header) as journal:
            plan = Plan(journal, paths, config.max_batch_images or BATCH_IMAGES)
            with closing(rows_of(plan, run, stop)) as rows:
                outputs.write(out, scorer.columns, summary.over(rows), header, form, places)
            journal.remove()
    except OSError as error:
        raise ScoreError(
            f"{error.filename or partial} cannot be written ({error.strerror}): put that right and give the same "
            "command again to go on"
        ) from error
    seconds = perf_counter() - started
    print(summary.text(scorer.engine.manifest, scorer.operating_point, scorer.scope))
    by = "on Ray" if args.on == "ray" else f"{threads} threads"
    print(f"wrote {out}: {plan.count} images in {seconds:.1f} s, {plan.count / seconds:.1f} images/s, {by}")


def _check(out: Path, partial: Path, overwrite: bool) -> None:
    """Raise ScoreError for an --out that cannot be written, before anything is scored."""
    if not out.parent.is_dir():
        raise ScoreError(f"the folder {out.parent} of --out does not exist: create it first")
    if out.exists() and not (overwrite and out.is_file()):
        _drop_leftover(out, partial)
        raise ScoreError(f"--out {out} exists already: choose another name, or give --overwrite to replace a file")


def _places(args: argparse.Namespace) -> labelling.Places:
    """Raises ScoreError for what goes with another format, or with none."""
    if args.image_root is not None and args.format is None:
        raise ScoreError("--image-root goes with --format: leave it out, or name the format")
    if args.image_prefix is not None and args.format != "label-studio":
        raise ScoreError("--image-prefix goes with --format label-studio: leave it out, or name that format")
    return labelling.Places(args.image_prefix or labelling.LOCAL_FILES, args.image_root)


def _configure(args: argparse.Namespace) -> Settings:
    """The settings of the environment, with the arguments in place of those that they name."""
    given = {
        "BUNDLE": args.bundle,
        "OPERATING_POINT": args.operating_point,
        "THRESHOLD_SCOPE": args.thresholds,
        "INFERENCE_THREADS": args.threads,
        "DECODE_THREADS": args.threads,
        "MAX_BATCH_IMAGES": args.batch_images,
    }
    return settings.load({**os.environ, **{PREFIX + k: str(v) for k, v in given.items() if v is not None}})


def _scorer(
    folder: Path, *, config: Settings, probabilities: bool, level: float | None, neighbours: int, embedding: bool
) -> Scorer:
    """Load and verify the bundle."""
    manifest = bundle.read(folder)
    if level is not None and manifest.sets is None:
        raise ScoreError(f"--set {level:g}: {folder} has no sets of classes: export it again, or leave --set out")
    point = config.operating_point or manifest.default_operating_point
    if point not in manifest.operating_points:
        known = ", ".join(manifest.operating_points)
        raise ScoreError(f"operating point {point} is none of {kinds.shown(config.bundle)}'s: {known}")
    return Scorer(
        engine=Engine(
            folder,
            manifest,
            provider=config.provider,
            intra_op_threads=config.intra_op_threads,
            gpu_mem_limit_bytes=config.gpu_mem_limit_bytes,
            max_batch_images=config.max_batch_images or BATCH_IMAGES,
        ),
        operating_point=point,
        scope=config.threshold_scope or manifest.threshold_scope,
        max_pixels=config.max_pixels,
        max_bytes=config.max_body_bytes,
        probabilities=probabilities,
        set=level,
        likeness=likeness(folder, manifest, neighbours, embedding),
    )


def _header(folder: Path, scorer: Scorer) -> dict[str, Any]:
    """Everything that changes a row: rows made under another header must not be mixed with these."""
    manifest = scorer.engine.manifest
    return {
        "bundle": f"{manifest.name} {manifest.version}",
        "graph_sha256": manifest.sha256,
        "manifest_sha256": hashlib.sha256((folder / bundle.MANIFEST_FILE).read_bytes()).hexdigest(),
        "operating_point": scorer.operating_point,
        "thresholds": scorer.scope,
        "set": scorer.set,
        "max_pixels": scorer.max_pixels,
        "max_body_bytes": scorer.max_bytes,
        "columns": list(scorer.columns),
        "working_folder": os.fsencode(os.getcwd()).decode("utf-8", "backslashreplace"),  # of relative paths
    }


def _drop_leftover(out: Path, partial: Path) -> None:
    """Remove the journal of the run that made `out`, killed just before it could do so itself."""
    if out.exists() and partial.exists() and partial.stat().st_mtime_ns <= out.stat().st_mtime_ns:
        try:
            partial.unlink(missing_ok=True)
        except OSError as error:
            raise ScoreError(f"{partial} is left of the run that wrote {out}: remove it ({error.strerror})") from error


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = 0.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text} is no level between 0 and 1: give 0.9, say")
    return level


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)
