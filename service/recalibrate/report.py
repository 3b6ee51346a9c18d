"""Old and new side by side: for a person, for the manifest, for the card."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from service.contract.bundle import Manifest
from service.contract.intervals import effective, wilson
from service.recalibrate.measured import Sample, refusals
from service.recalibrate.rows import Rows

ALL = "all"


class Compared(NamedTuple):
    """Of one operating point, overall ("all") or of the images predicted in a group: both thresholds, the share of
    reviewed known images that each refuses (weighted), of how many, and what the new one promises at most."""

    point: str
    where: str
    old_threshold: float
    new_threshold: float
    old: float
    new: float
    images: int
    alike: float  # the effective number
    promise: float | None


def compare(manifest: Manifest, points: dict[str, Any], sample: Sample) -> list[Compared]:
    """By operating point with thresholds by group, then each group."""
    found = []
    known, weights = sample.decided()[0], sample.inside.weights
    groups = sample.groups.of_class[sample.inside.images.predicted]
    for name, point in points.items():
        before = manifest.operating_points[name].model_dump()
        flags = [refusals(manifest, one, "group", known) for one in (before, point)]
        for where in (ALL, *sample.groups.names):
            own = np.ones(len(groups), bool) if where == ALL else groups == where
            old, new = (float(np.average(f[own], weights=weights[own])) for f in flags)
            limits = [one["threshold"] if where == ALL else one["group_thresholds"][where] for one in (before, point)]
            promise = point["group_promises"].get(where)
            alike = effective(weights[own])
            found.append(Compared(name, where, limits[0], limits[1], old, new, int(own.sum()), alike, promise))
    return found


def lines(manifest: Manifest, rows: Rows, sample: Sample, compared: list[Compared]) -> Iterator[str]:
    """The rows used, and the table."""
    yield f"{manifest.name} version {manifest.version}, graph {manifest.sha256[:16]}: {len(sample.known)} reviewed " \
          f"known images and {len(sample.strangers)} outliers"  # fmt: skip
    for stratum, kept in sorted(rows.kept.items()):
        seen = rows.reviewed[stratum]
        none = ": those that were stand for them" if rows.is_spoken_for(stratum) else ": left out"
        each = f", each stands for {rows.stands_for(stratum):.4g} images" if seen else none
        how = f"{stratum.group}, {stratum.decision}, kept with probability {stratum.keep_probability:g}"
        yield f"  {how}: {seen} of {kept} reviewed{each}"
    if rows.unkept:
        yield f"  {rows.unkept} labelled rows were not kept, and nobody knows how they were chosen: left out"
    yield "temperature: as it was, since the ledger holds no probabilities"
    table = [("point", "group", "old", "new", "refused before", "refused now", "at most", "images")]
    for row in compared:
        table.append((
            row.point, row.where, f"{row.old_threshold:.5g}", f"{row.new_threshold:.5g}", _share(row.old, row.alike),
            _share(row.new, row.alike), "-" if row.promise is None else f"{row.promise:.1%}", str(row.images),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    yield "refused: reviewed known images by predicted group, weighted, with 95% intervals of the effective number"


def _share(share: float, alike: float) -> str:
    low, high = wilson(share * alike, alike)
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def record(rows: Rows, sample: Sample, compared: list[Compared]) -> dict[str, Any]:
    """What the manifest says of the rows used."""
    return {
        "recalibrated": {
            "known_images": len(sample.known),
            "outliers": len(sample.strangers),
            "rows": [
                stratum._asdict() | {"kept": kept, "reviewed": rows.reviewed[stratum]}
                for stratum, kept in sorted(rows.kept.items())
            ],
            "refused": [row._asdict() for row in compared],
        }
    }


def card(manifest: Manifest, added: dict[str, Any]) -> str:
    """The section that is appended to the card, whose figures on test images are those of the old thresholds."""
    facts = added["recalibrated"]
    out = [
        "", "## Recalibrated", "",
        f"The thresholds, quantiles and p-values of version {manifest.version} of `{manifest.name}` were measured anew "
        f"on {facts['known_images']} known images and {facts['outliers']} outliers of the stream that people reviewed, "
        "each weighted by how many it stands for. The graph is the same. Everything above that says what is refused "
        "is of the old thresholds.", "",
        "| point | group | old threshold | new threshold | refused before | refused now | images |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    out += [
        f"| `{r['point']}` | {r['where']} | {r['old_threshold']:.5g} | {r['new_threshold']:.5g} | {r['old']:.1%} | "
        f"{r['new']:.1%} | {r['images']} |"
        for r in facts["refused"]
    ]
    return "\n".join(out) + "\n"
