"""The recalibrate command: old and new thresholds side by side, and a new bundle of the same graph."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from service.contract import bundle, outcomes
from service.contract.bundle import BundleError, Manifest
from service.contract.calibration_file import OutcomesFile
from service.recalibrate import measured as measuring
from service.recalibrate import reasons, report, rows
from service.recalibrate.measured import CannotRecalibrate

MOST_POINTS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard recalibrate`."""
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle whose decisions were reviewed")
    parser.add_argument("--ledger", required=True, help="an SQLite file or a postgresql:// URL")
    parser.add_argument("--out", type=Path, required=True, help="the new bundle, <models>/<name>/<version>")
    parser.add_argument(
        "--most-points", type=float, default=MOST_POINTS,
        help="percentage points by which the refusal of reviewed known images may change, overall and in each group, "
        "without --yes (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="write it however far the thresholds move")


def main(args: argparse.Namespace) -> int:
    """Print the comparison and write the bundle. Raises BundleError, SettingsError or CannotRecalibrate."""
    if args.out.exists():
        raise BundleError(bundle.already(args.out))
    manifest = bundle.read(args.bundle)
    read = rows.read(args.ledger, manifest)
    sample = measuring.sample(manifest, read)
    points, record = measuring.measured(manifest, sample)
    compared = report.compare(manifest, points, sample)
    print("\n".join(report.lines(manifest, read, sample, compared)))
    far = [row for row in compared if abs(row.new - row.old) * 100 > args.most_points]
    if far and not args.yes:
        named = "; ".join(f"{row.point} {row.where} {row.old:.1%} to {row.new:.1%}" for row in far)
        raise CannotRecalibrate(f"nothing was written: refusal moves by more than {args.most_points:g} points: "
                                f"{named}. Look at the labels, and give --yes if it is right")  # fmt: skip
    files = {}
    if manifest.outcomes:
        files[manifest.outcomes.file] = outcomes.encode(sample.outcomes())
    added = (manifest.provenance.added or {}) | report.record(read, sample, compared)  # the graph has learned the same
    told = None
    if manifest.reasons:
        told = reasons.told(manifest, points[manifest.default_operating_point], sample)
    made = write(args.bundle, args.out, manifest, points, record, added, files, sample.outcomes().described(), told)
    print(f"{args.out}: the graph {made.sha256[:16]} with thresholds of {len(sample.known)} reviewed images")
    return 0


def write(
    source: Path, out: Path, manifest: Manifest, points: dict[str, Any], record: dict[str, Any],
    added: dict[str, Any], changed: dict[str, bytes], turned_out: OutcomesFile, told: dict[str, Any] | None,
) -> Manifest:  # fmt: skip
    """The files of `source` but those `changed`, with other thresholds. All of it appears, or nothing."""
    evaluation = manifest.model_dump(include={"evaluation"})["evaluation"]
    for measured in (evaluation.get("ood") or {}).values():
        measured.pop("rejected", None)  # of the old thresholds
    fields: dict[str, Any] = {
        "operating_points": points, "calibration": record, "reasons": told, "evaluation": evaluation,
        "classes": [c.model_copy(update={"rejected": None}).model_dump() for c in manifest.classes],
    }  # fmt: skip
    if manifest.outcomes:
        fields["outcomes"] = turned_out.model_dump() | {"file": manifest.outcomes.file}
    return bundle.derive(
        source, out, manifest, fields, files=changed, card=report.card(manifest, added), added=added,
        command=shlex.join(["tailguard", *_without_password(sys.argv[1:])]),
    )  # fmt: skip


def _without_password(arguments: list[str]) -> list[str]:
    """The arguments, of a URL only its scheme."""
    return [f"{a.partition('://')[0]}://..." if "://" in a else a for a in arguments]
