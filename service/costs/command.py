"""`tailguard inspect BUNDLE --costs FILE`: the table, and with --out a new version with a named operating point."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import bundle, outcomes
from service.contract.bundle import BundleError, Manifest
from service.contract.calibration import calibrate
from service.contract.calibration.calibrate import Scored
from service.contract.calibration.groups import Groups
from service.contract.outcomes import Outcomes
from service.costs import choose, given, report
from service.costs.choose import Bill, Rule
from service.errors import SettingsError

POINT = "costs"


def main(folder: Path, file: Path, out: Path | None, name: str) -> int:
    """Print the table; write the bundle where `out` is given. Raises BundleError or SettingsError."""
    manifest = bundle.read(folder)
    if out is not None and out.exists():
        raise BundleError(bundle.already(out))
    if name in manifest.operating_points or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise SettingsError(
            f"--point {name!r}: give a name of small letters and digits that is none of "
            f"{', '.join(manifest.operating_points)}"
        )
    found = outcomes.read(folder, manifest)
    if found is None:
        raise BundleError(f"{folder} does not say how its calibration images turned out: export it again")
    names, groups = [c.name for c in manifest.classes], [c.group for c in manifest.classes]
    if (~found.refused_anyway).sum() < 2:
        raise BundleError(f"{folder} has fewer than two calibration images that are fit: no threshold can be weighed")
    costs = given.read(file, names)
    if costs.unknown_share and found.known.all():
        raise SettingsError(
            f"--costs {file}: unknown_share is {costs.unknown_share:g} and {folder} was calibrated without outliers: "
            "give 0, or train and export with --outliers"
        )
    paid = choose.bill(manifest, found, costs)
    rule = choose.choose(paid, groups)
    rows, saved = report.rows(manifest, paid, rule), choose.savings(paid, rule, names, groups)
    of_unfit = report.unfit(manifest, found)
    print("\n".join(report.lines(rows, rule, saved, found, of_unfit)))
    if out is not None:
        section = report.card(name, rows, rule, saved, costs.in_words(), of_unfit)
        made = write(folder, out, manifest, name, point(manifest, found, paid, rule, costs.in_words()), section)
        print(f"{out}: the graph {made.sha256[:16]} with the operating point {name}")
    return 0


def point(manifest: Manifest, found: Outcomes, paid: Bill, rule: Rule, words: str) -> dict[str, Any]:
    """The operating point, with its costs in the terms of every other one."""
    names, of_class = [c.name for c in manifest.classes], [c.group for c in manifest.classes]
    fields: dict[str, Any] = {
        "description": f"the least expected cost on calibration images, where {words}",
        "level": None,
        "threshold": rule.threshold,
        "group_thresholds": {g: rule.groups.get(g, rule.threshold) for g in manifest.group_names},
        "class_thresholds": {names[place]: limit for place, limit in rule.classes.items()},
        "group_promises": {},
    }
    counts = np.array([c.train_count for c in manifest.classes], np.int64)
    groups = Groups(manifest.groups, np.array(of_class), counts)
    inside = Scored(found.score[found.known], found.predicted[found.known], found.label[found.known])
    outside = Scored(found.score[~found.known], found.predicted[~found.known])
    for kind, limits in (
        ("global", np.full(len(found.label), rule.threshold)), ("group", rule.limits(found.predicted, of_class))
    ):  # fmt: skip
        flags = paid.refused(limits)
        refused = [flags[found.known], flags[~found.known]]
        cost = calibrate.cost_of(refused, groups, inside, [outside], found.weight[found.known])
        fields[f"{kind}_cost"] = {"calibration": cost, "test": None}
    return fields


def write(source: Path, out: Path, manifest: Manifest, name: str, made: dict[str, Any], section: str) -> Manifest:
    """The new bundle: the files of `source` and one more operating point. All of it appears, or nothing."""
    points = {known: point.model_dump() for known, point in manifest.operating_points.items()}
    return bundle.derive(
        source, out, manifest, {"operating_points": points | {name: made}}, files={}, card=section,
        added=(manifest.provenance.added or {}) | {"operating_point": name},
        command=shlex.join(["tailguard", *sys.argv[1:]]),
    )  # fmt: skip
