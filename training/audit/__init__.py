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

from service.contract.calibration.groups import group_classes
from training.audit import advice, duplicates, sources
from training.audit.advice import Advice, Setting
from training.audit.duplicates import ImagePart
from training.audit.notes import notes
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

__all__ = ["Report", "audit", "gini", "plot", "render"]
COMPARED = (("train", "test"), ("train", "val"), ("outliers", "test"), ("outliers", "ood"))  # for near duplicates


def audit(
    data: Path | None, *, dataset: str | None = None, imbalance: float | None = None, outliers: Path | None = None,
    ood: Sequence[Path] = (), size_px: int = 32, class_level: int | None = None, group_by: str = "near",
    measure: bool = False,
) -> Report:  # fmt: skip
    """Look at a data set as training would read it: CIFAR pickles, class folders or a list, detected where not named.

    `data` is None for scikit-learn's digits. `measure`: time a few steps of each recommendation on this machine.

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
    validation = next((np.array(part.counts) for part in parts if part.name == "val"), None)
    groups = group_classes(counts if validation is None else counts + validation)  # as calibration makes them
    if outliers is None and found.outliers is not None and data is not None:
        outliers = data / "outliers"
    both = [
        advice.advise(
            dataset=found.kind, data=data, imbalance=imbalance, outliers=outliers, counts=counts, groups=groups,
            median_side_px=min(parts[0].width_px.median, parts[0].height_px.median), frozen=frozen,
            validated=validation is not None,
        )
        for frozen in ([True, False] if found.kind in sources.PHOTOGRAPHS else [False])
    ]  # fmt: skip
    unmeasured: list[str] = []
    both = [_measured(_with_reading(one, group_by, class_level), found, measure, unmeasured) for one in both]
    advised = both[0]
    fraction = next((s.value for s in advised.settings if s.name == "calibration_fraction"), 0.0)
    held = (advice.held_out(counts, fraction) if validation is None else validation).tolist()
    images = [source.part for source in every]
    copies, conflicts = _exact(images, found.classes)
    report = Report(
        data=str(data or found.kind), dataset=found.kind, size_px=images[0].pixels.shape[1],
        groups=list(groups.groups),
        classes=[
            ClassRow(name=c, group=g, train=n, calibration=h, highest_level=advice.highest_level(h))
            for c, g, n, h in zip(found.classes, groups.of_class.tolist(), counts.tolist(), held, strict=True)
        ],
        imbalance_ratio=float(counts.max() / max(counts.min(), 1)), gini=gini(counts), parts=parts,
        unreadable=[Unreadable(path=p, reason=r) for source in every for p, r in source.unreadable],
        copies=copies, conflicts=conflicts, look_alikes=_near(images),
        support=advice.support(
            counts, groups, len(found.outliers.part.pixels) if found.outliers else 0, fraction, validation
        ),
        advice=advised, alternatives=both[1:], notes=[], ood=[str(path) for path in found.ood_paths],
    )  # fmt: skip
    twice = [p for p in duplicates.of_two_classes(images[0])  # equal ones are CONFLICTS
             if not np.array_equal(images[0].pixels[p.first], images[0].pixels[p.second])]  # fmt: skip
    said = [*duplicates.two_classes_note(images[0], twice), *notes(report, found), *unmeasured]
    return report.model_copy(update={"notes": said})


def _measured(advised: Advice, found: Sources, measure: bool, said: list[str]) -> Advice:
    """The advice with its time where `measure` is set; a note where what it needs is not installed."""
    if not measure:
        return advised
    try:
        from training.audit import timing
        from training.network.preprocessing import BackboneError
    except ImportError as error:
        said.append(f"no time was measured: {error}; pip install 'tailguard[cpu,train,backbones]'")
        return advised
    train = found.splits["train"]
    others = sum(len(s.part.pixels) for name, s in found.splits.items() if name != "train")
    work = timing.Work(
        train=len(train.part.pixels), outliers=len(found.outliers.part.pixels) if found.outliers else 0,
        others=others + sum(len(s.part.pixels) for s in found.ood), classes=len(found.classes), files=train.paths,
    )  # fmt: skip
    try:
        return advised.model_copy(update={"estimate": timing.estimate(advised, work)})
    except BackboneError as error:
        said.append(f"the time with a pretrained backbone was not measured: {error}")
        return advised


def _with_reading(advised: Advice, group_by: str, class_level: int | None) -> Advice:
    """The advice with the settings by which the photographs were read, where those are not the defaults."""
    more = [("group_by", group_by, "near"), ("class_level", class_level, None)]
    settings = [Setting(name=n, value=v, reason="as given") for n, v, default in more if v != default]
    command = " ".join([advised.command, *map(advice.option, settings)])
    return advised.model_copy(update={"settings": [*advised.settings, *settings], "command": command})


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
