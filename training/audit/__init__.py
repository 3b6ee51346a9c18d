"""What is in a data set before training: counts, duplicates, faults; what does it support, with which settings?

    report = audit(Path("plankton")); print(render(report)); plot(report, Path("audit.png"))

Nothing is changed and nothing is written.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.audit import advice, duplicates, sources
from training.audit.advice import Advice, Setting
from training.audit.duplicates import ImagePart
from training.audit.picture import plot
from training.audit.report import (
    ClassRow,
    Conflict,
    Copies,
    LookAlikes,
    NearPair,
    Part,
    Range,
    Report,
    Unreadable,
    render,
)
from training.audit.sources import Source, Sources
from training.data.scan import Header
from training.evaluation.groups import group_classes

__all__ = ["Report", "audit", "gini", "plot", "render"]
COMPARED = (("train", "test"), ("train", "val"), ("outliers", "test"), ("outliers", "ood"))  # for near duplicates
_LEAK = "what is measured there looks better than it is; keep them in one part"
SHARED_MEANS = {  # what it does when two parts have images in common
    ("train", "val"): _LEAK,
    ("train", "test"): _LEAK,
    ("val", "test"): _LEAK,
    ("train", "outliers"): "the model is taught to know and to refuse them; remove them from the outliers",
    ("val", "outliers"): "the model is taught to refuse good images; remove them from the outliers",
    ("test", "outliers"): "the model is taught to refuse good images; remove them from the outliers",
    ("train", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("val", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("test", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("outliers", "ood"): _LEAK,
    ("ood", "ood"): "two OOD sets overlap; such images count twice in the mean over the OOD sets",
}


def audit(
    data: Path, *, dataset: str | None = None, imbalance: float | None = None, outliers: Path | None = None,
    ood: Sequence[Path] = (), size_px: int = 32, class_level: int | None = None, group_by: str = "near",
) -> Report:  # fmt: skip
    """Look at a data set as training would read it: CIFAR pickles, class folders or a list, detected where not named.

    `imbalance` cuts the training images as `train --imbalance` does. Outliers and OOD sets are arrays or folders;
    beside class folders, outliers/ and ood/ are taken where none are named. `size_px` is the side at which photographs
    are compared; `class_level` and `group_by` are as in `train`.
    Raises DataError where there is no data set to look at; unreadable files are reported.
    """
    found = sources.read(
        data, dataset=dataset, imbalance=imbalance, outliers=outliers, ood=ood, size_px=size_px,
        class_level=class_level, group_by=group_by,
    )  # fmt: skip
    every = [*found.splits.values(), *([found.outliers] if found.outliers else []), *found.ood]
    parts = [_part(source, found.classes) for source in every]
    counts = np.array(parts[0].counts)
    groups = group_classes(counts)
    if outliers is None and found.outliers is not None:
        outliers = data / "outliers"
    advised = advice.advise(
        dataset=found.kind, data=data, imbalance=imbalance, outliers=outliers, counts=counts, groups=groups,
        median_side_px=min(parts[0].width_px.median, parts[0].height_px.median),
    )  # fmt: skip
    advised = _with_reading(advised, group_by, class_level)
    fraction = next(s.value for s in advised.settings if s.name == "calibration_fraction")
    held = advice.held_out(counts, fraction).tolist()
    images = [source.part for source in every]
    copies, conflicts = _exact(images, found.classes)
    report = Report(
        data=str(data), dataset=found.kind, size_px=images[0].pixels.shape[1],
        groups=list(groups.groups),
        classes=[
            ClassRow(name=c, group=g, train=n, calibration=h, highest_level=advice.highest_level(h))
            for c, g, n, h in zip(found.classes, groups.of_class.tolist(), counts.tolist(), held, strict=True)
        ],
        imbalance_ratio=float(counts.max() / max(counts.min(), 1)), gini=gini(counts), parts=parts,
        unreadable=[Unreadable(path=p, reason=r) for source in every for p, r in source.unreadable],
        copies=copies, conflicts=conflicts, look_alikes=_near(images),
        support=advice.support(counts, groups, len(found.outliers.part.pixels) if found.outliers else 0, fraction),
        advice=advised, notes=[],
    )  # fmt: skip
    return report.model_copy(update={"notes": _notes(report, found)})


def _with_reading(advised: Advice, group_by: str, class_level: int | None) -> Advice:
    """The advice with the settings by which the photographs were read, where those are not the defaults."""
    more = [("group_by", group_by, "near"), ("class_level", class_level, None)]
    settings = [Setting(name=n, value=v, reason="as given") for n, v, default in more if v != default]
    command = " ".join([advised.command, *map(advice.option, settings)])
    return Advice(settings=[*advised.settings, *settings], command=command)


def gini(counts: NDArray[np.int64]) -> float:
    """The Gini coefficient of the counts [C]: mean absolute difference of all pairs over twice the mean; in [0, 1).

    With counts in ascending order, Σ (2i − C − 1)·n_i / (C·Σ n_i), i from 1. ValueError where all are zero.
    """
    ordered = np.sort(counts).astype(np.float64)
    if not ordered.sum() > 0:
        raise ValueError("the counts are all zero: there is no inequality to measure")
    ranks = np.arange(1, len(ordered) + 1)
    return float(((2 * ranks - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


def _part(source: Source, classes: tuple[str, ...]) -> Part:
    part = source.part
    pixels = part.pixels
    counts = None if part.labels is None else np.bincount(part.labels, minlength=len(classes)).tolist()
    size = pixels.shape[1]
    headers = source.headers or [Header(size, size, "", "")] * (1 if len(pixels) else 0)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    grey = int(((red == green) & (green == blue)).all(axis=(1, 2)).sum())
    return Part(
        name=part.name, images=len(pixels), counts=counts,
        missing=[c for c, n in zip(classes, counts or [], strict=False) if not n],
        grey=grey, flat=int(duplicates.flat(part.thumbnails).sum()),
        width_px=_range([h.width_px for h in headers]), height_px=_range([h.height_px for h in headers]),
        aspect=_range([h.width_px / h.height_px for h in headers]),
        formats=dict(Counter(h.format for h in source.headers).most_common()),
        modes=dict(Counter(h.mode for h in source.headers).most_common()),
    )  # fmt: skip


def _range(values: Sequence[float]) -> Range:
    if not values:
        return Range(minimum=0, median=0, maximum=0)
    return Range(minimum=min(values), median=float(np.median(values)), maximum=max(values))


def _exact(images: list[ImagePart], classes: tuple[str, ...]) -> tuple[list[Copies], list[Conflict]]:
    """Copies within and across parts, and the sets of equal images whose labels differ."""
    pairs: dict[tuple[int, int], list[tuple[str, str]]] = {
        pair: [] for pair in combinations_with_replacement(range(len(images)), 2)
    }
    conflicts = []
    for group in duplicates.exact(images):
        seen: dict[int, str] = {}  # part → its first image of this group
        for p, i in group:
            name = images[p].names[i]
            for earlier, example in seen.items():
                pairs[earlier, p].append((example, name))
            seen.setdefault(p, name)
        labelled = [(images[p].names[i], classes[y[i]]) for p, i in group if (y := images[p].labels) is not None]
        if len(labels := {label for _, label in labelled}) > 1:
            conflicts.append(Conflict(images=[name for name, _ in labelled], labels=sorted(labels)))
    copies = [
        Copies(first=images[a].name, second=images[b].name, images=len(found), examples=found)
        for (a, b), found in pairs.items()
        if found
    ]
    return copies, conflicts


def _near(images: list[ImagePart]) -> list[LookAlikes]:
    out = []
    for a, b in COMPARED:
        for first in (p for p in images if p.name == a):
            for second in (p for p in images if p.name.split("/")[0] == b):
                found = duplicates.near(first, second)
                pairs = [
                    NearPair(
                        first=first.names[n.first], second=second.names[n.second],
                        thumbnail_cosine=n.thumbnail_cosine, full_cosine=n.full_cosine,
                    )
                    for n in found
                ]  # fmt: skip
                sure = sum(n.full_cosine > duplicates.SAME_COSINE for n in found)
                out.append(LookAlikes(first=a, second=second.name, images=len(found), alike_in_full=sure, pairs=pairs))
    return out


def _notes(report: Report, found: Sources) -> list[str]:
    """What to see to, the grave things first."""
    by_name = {p.name: p for p in report.parts}
    notes = [
        f"{p.name} has no image of {', '.join(p.missing[:5])}{' ...' if len(p.missing) > 5 else ''}: "
        + ("`train` needs every class there" if p.name == "train" else "nothing is measured of them")
        for p in (by_name[name] for name in ("train", "test") if name in by_name)
        if p.missing
    ]
    shared = {(c.first.split("/")[0], c.second.split("/")[0]) for c in report.copies if c.first != c.second}
    notes += [f"{' and '.join(pair)} have images in common: {SHARED_MEANS[pair]}" for pair in sorted(shared)]
    if report.conflicts:
        notes.append("equal images with different labels teach nothing: decide on one label or remove them")
    if "val" in by_name:
        notes.append("`train` calibrates on val, so it takes no calibration images from train")
    every = [*found.splits.values(), *([found.outliers] if found.outliers else []), *found.ood]
    notes += found.notes + [note for source in every for note in source.notes]
    lonely = sum(c.calibration == 0 for c in report.classes)
    if lonely:
        notes.append(f"{lonely} classes have too few images to hold one out: nothing will be known of them")
    if found.kind == "folder":
        notes.append(
            "training mirrors images left to right; where a mirror image is another class (text, signs, left and right "
            "hands), which pixels cannot tell, give --augment crop or --augment none"
        )
    return notes
