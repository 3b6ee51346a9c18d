"""The part of a card that says from which bundle this one was taught, what was added, and how the two compare."""

from collections.abc import Iterable, Mapping
from typing import Any

from service.contract.bundle import Manifest
from training.layout import markdown_table


def learned(m: Manifest) -> Iterable[str]:
    """Nothing for a bundle that was not taught."""
    added, parent = m.provenance.added, m.provenance.parent
    if not added or "new_classes" not in added:
        return
    yield "## Learned"
    was = f"version {parent.version} of `{parent.name}` (graph `{parent.sha256[:16]}`)" if parent else "an earlier run"
    yield f"The head of {was} learned again, from its data and from images that people labelled:"
    rows = [[f"new class {name}", *counts.values()] for name, counts in added["new_classes"].items()]
    rows += [[f"more of {name}", *counts.values()] for name, counts in added["known_classes"].items()]
    rows.append(["outliers", *added["outliers"].values()])
    yield markdown_table(["added", "trained on", "calibrated on", "compared on"], rows)
    compared = m.evaluation.get("comparison")
    if not compared:
        return
    yield (
        "Both models on the same images, each refusing at its own default operating point; the interval (95%) is that "
        "of the change, in points."
    )
    yield compared_table(compared["figures"])


def compared_table(found: Iterable[Mapping[str, Any]]) -> str:
    """Figures of an old and a new model, in Markdown; the interval is that of the change, in points."""
    rows = [
        [f["name"] + (" (became worse)" if f["worse"] else ""), f["images"], f"{f['old']:.1%}", f"{f['new']:.1%}",
         f"{100 * f['low']:+.1f} to {100 * f['high']:+.1f}"]
        for f in found
    ]  # fmt: skip
    return markdown_table(["", "images", "old", "new", "interval"], rows)
