"""For a person: what accepting all, refusing all, each operating point and the cheapest rule would have cost."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from service.contract.bundle import Manifest
from service.contract.decision import class_limit
from service.contract.intervals import Z95
from service.contract.outcomes import Outcomes
from service.costs.choose import FOLDS, LEAST_IMAGES, Bill, Floats, Rule, Saving, cross_fitted


class Row(NamedTuple):
    """`cost` for an image with its 95% interval; shares of known images refused and wrongly accepted, and of unknown
    ones refused, None where there are none."""

    name: str
    cost: float
    low: float
    high: float
    refused: float
    wrong: float
    caught: float | None


def rows(manifest: Manifest, found: Bill, rule: Rule) -> list[Row]:
    """Every row; the rule's figures are cross-fitted: it is paid by images that did not choose it."""
    groups = [info.group for info in manifest.classes]
    everything: list[tuple[str, Floats | float]] = [("accept all", np.inf), ("refuse all", -np.inf)]
    for name, point in manifest.operating_points.items():
        by_class = np.array([class_limit(point, manifest.threshold_scope, info) for info in manifest.classes])
        everything.append((name, by_class[found.predicted]))
    everything.append(("least cost", cross_fitted(found, groups)))
    return [_row(name, found, limits) for name, limits in everything]


def _row(name: str, found: Bill, limits: Floats | float) -> Row:
    paid, refused = found.paid(limits), found.refused(limits)
    cost = float((found.share * paid).sum())
    variance = 0.0
    for part in (found.known, ~found.known):
        if (whole := found.share[part].sum()) > 0:
            weights = found.share[part] / whole
            mean = (weights * paid[part]).sum()
            variance += float(whole**2 * (weights**2 * (paid[part] - mean) ** 2).sum())
    half = Z95 * variance**0.5
    known = found.share[found.known] / found.share[found.known].sum()
    wrong = ~refused & found.wrong
    caught = None if found.known.all() else float(refused[~found.known].mean())
    return Row(
        name, cost, max(cost - half, 0.0), cost + half, float((known * refused[found.known]).sum()),
        float((known * wrong[found.known]).sum()), caught,
    )  # fmt: skip


def unfit(manifest: Manifest, turned_out: Outcomes) -> str:
    """What is to be said of unfit images; nothing where there are none, or the bundle knows no such images."""
    anyway, inside = turned_out.refused_anyway, turned_out.known
    if anyway.any():
        return (
            f"{(anyway & inside).sum()} of the known and {(anyway & ~inside).sum()} of the unknown ones are unfit: "
            "refused whatever the threshold, each costs a refusal"
        )
    if turned_out.unfit is None and manifest.reasons is not None:
        measured = manifest.reasons.measured
        tested = manifest.evaluation.get("ood") or {}  # no part of the calibration images
        known = measured.calibration.all.unfit
        unknown = max((shares.unfit for name, shares in measured.outliers.items() if name not in tested), default=0.0)
        if known or unknown:
            return (
                f"which images are unfit (dark, blank, blurred, small: {known:.2%} of the known and {unknown:.2%} of "
                "the unknown ones) is not in this bundle: they count by their scores here, and the service refuses "
                "them whatever they score; export it again"
            )
    return ""


def lines(found: list[Row], rule: Rule, saved: list[Saving], turned_out: Outcomes, of_unfit: str) -> Iterator[str]:
    known = int(turned_out.known.sum())
    yield f"on {known} known calibration images and {len(turned_out.label) - known} unknown ones, for an image:"
    yield f"{'':<14}{'cost':>10}{'95%':>24}{'refused':>10}{'wrong':>8}{'unknown refused':>17}"
    for row in found:
        caught = "-" if row.caught is None else f"{row.caught:.1%}"
        interval = f"{row.low:.4g} to {row.high:.4g}"
        yield f"{row.name:<14}{row.cost:>10.4g}{interval:>24}{row.refused:>10.1%}{row.wrong:>8.1%}{caught:>17}"
    if of_unfit:
        yield of_unfit
    yield f"least cost: chosen on {FOLDS - 1} of {FOLDS} parts of the images, paid on the other, for each part"
    yield f"one threshold for all: {rule.threshold:.6g}" + "".join(
        f"; {group}: {limit:.6g}" for group, limit in rule.groups.items()
    )
    own = [s for s in saved if s.taken]
    few = sum(s.images < LEAST_IMAGES for s in saved)
    for s in own:
        yield f"its own threshold for {s.name}: saves {s.saved:.3g} ± {s.error:.2g} for each of {s.images}"
    yield (
        f"{len(own)} of {len(saved)} classes have a threshold of their own; {few} have fewer than {LEAST_IMAGES} "
        "images predicted so, and for the others theirs saved no more than chance would"
    )


def card(name: str, found: list[Row], rule: Rule, saved: list[Saving], words: str, of_unfit: str) -> str:
    """The section that is appended to the card."""
    own = ", ".join(s.name for s in saved if s.taken) or "none"
    head = "| | cost for an image | 95% | known refused | known wrongly accepted | unknown refused |\n"
    head += "|---|---:|---:|---:|---:|---:|\n"
    table = "".join(
        f"| {r.name} | {r.cost:.4g} | {r.low:.4g} to {r.high:.4g} | {r.refused:.1%} | {r.wrong:.1%} | "
        f"{'-' if r.caught is None else f'{r.caught:.1%}'} |\n"
        for r in found
    )
    note = f"Unfit images: {of_unfit}. " if of_unfit else ""
    return (
        f"\n## Costs\n\n`{name}` has the thresholds of least expected cost where {words}. On the calibration images "
        f"(least cost: on images that did not choose it):\n\n{head}{table}\n{note}Classes with a "
        f"threshold of their own, which their calibration images support: {own}.\n"
    )
