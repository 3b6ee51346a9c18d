"""The parts of a card on sets of classes and on what can still be said of a refused image."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from service.contract.intervals import wilson
from training.export.promises import measured_on, rests_on
from training.layout import DASH, markdown_table


def sets(m: Manifest) -> Iterable[str]:
    """Realised coverage and mean size of conformal sets; nothing for a bundle without."""
    if m.sets is None:
        return
    yield "## Sets of classes"
    images = ", ".join(f"{r.images} {g}" for g, r in m.sets.references.items())
    yield (
        "Asked for with `set=0.9`, an answer names the smallest set of classes that holds the true one nine times in "
        f"ten, in each group of the true class (conformal; calibrated on {rests_on(m)}: {images}). Of an image of no "
        "class a set says nothing. A group with too few calibration images for a level has all of its classes in every "
        "set, and the answer says so."
    )
    if not m.sets.measured:
        return
    rows = []
    for found in m.sets.measured:
        by_group = [
            f"{_share(found.covered_by_group.get(g))} / {_size(found.mean_size_by_group.get(g))}"
            + (" (too few)" if g in found.too_few else "")
            for g in m.group_names
        ]
        low, high = wilson(found.covered * found.images, found.images)
        held = f"{_share(found.covered)} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append([f"{found.level:.0%}", found.images, held, _size(found.mean_size), *by_group])
    yield markdown_table(["level", "images", "holds the true class (95%)", "classes", *m.group_names], rows)
    yield f"Measured {measured_on(m)}; by group of the true class: how often the set holds it, and classes of a set."


def taxonomy(m: Manifest) -> Iterable[str]:
    """Thresholds and errors by depth; nothing for a bundle without a tree."""
    if m.taxonomy is None:
        return
    tree = m.taxonomy
    yield "## What can still be said"
    yield (
        f"Of a refused image the answer names the deepest node of a tree above the classes (from {tree.source}) that "
        f"can be promised: of in-distribution images that are told one, at most {tree.error:.1%} are told a wrong one. "
        f"Thresholds rest on the {tree.uncertain} most outlying calibration images, as refused images are harder "
        "than others. Of an image of no class nothing is promised."
    )
    rows = [
        [
            level.depth, len({p[: level.depth] for p in tree.paths if len(p) >= level.depth}),
            DASH if level.threshold is None else f"{level.threshold:.3f}", level.told, level.wrong,
            level.measured_told, level.measured_wrong,
        ]
        for level in tree.levels
    ]  # fmt: skip
    head = ["depth", "nodes", "threshold", "told in calibration", "of them wrong", "refused and told", "of them wrong"]
    yield markdown_table(head, rows)
    if any(level.threshold is None for level in tree.levels):
        yield "Where there is no threshold, too few calibration images allow no promise: nothing is said at that depth."
    if (told := tree.measured) and told.refused:
        share = told.wrong / told.told if told.told else None
        low, high = wilson(told.wrong, told.told)
        interval = "" if share is None else f" (95%: {100 * low:.1f} to {100 * high:.1f})"
        outliers = ""
        if told.outliers_told is not None:
            outliers = f" Of the refused images of the OOD sets {told.outliers_told:.1%} are told one too."
        yield (
            f"{measured_on(m).capitalize()}: of {told.refused} refused of {told.images} in-distribution images "
            f"{told.told / told.refused:.1%} are told a node, and {_share(share)}{interval} of these a wrong one."
            f"{outliers}"
        )


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"


def _size(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"
