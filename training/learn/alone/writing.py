"""The bundle that learned alone: its parent's files, the grown graph, and what was measured."""

from pathlib import Path

import numpy as np

from service.contract import bundle, exemplars
from service.contract.bundle import Manifest
from service.contract.keys import key_text
from training.export import examples
from training.export import exemplars as choosing
from training.export.lineage import compared_table
from training.layout import markdown_table
from training.learn.alone import inherited
from training.learn.alone.judged import STAY
from training.learn.alone.learned import Learned
from training.learn.command import Learn
from training.learn.data import by_class, sources, used
from training.learn.sides import CALIBRATION, COMPARED, TRAIN
from training.runs import checkpoint
from training.runs.files import Json


def write(given: Learn, target: Path, learned: Learned, graph: bytes, fields: Json, compared: Json) -> Manifest:
    """All of it appears, or nothing."""
    parent = learned.parent
    assert parent.exemplars is not None
    content, count = _exemplars(learned)
    shown = {Path(example.file).name: (given.run / example.file).read_bytes() for example in parent.golden}
    drawn, golden = examples.golden(graph, parent.input, tuple(c["name"] for c in fields["classes"]), shown)
    added = _added(given, learned)
    held = [f for f in compared["figures"] if f["name"] == "accuracy, reviewed images of new classes"]
    now = checkpoint.provenance()
    changed = fields | {
        "evaluation": {
            "measured_on": "reviewed images of new classes that were not taught", "accuracy": held[0]["new"],
            "images": held[0]["images"], "comparison": compared, "of_the_parent": parent.evaluation,
            "heat_map": "new classes are told by the embedding: no position can be told what it has brought to them",
        },
        "golden": golden,
        "exemplars": parent.exemplars.model_dump() | {
            "count": count, "chosen": f"{parent.exemplars.chosen}. Of new classes at most {choosing.MOST_OF_A_CLASS} "
            "reviewed images that were taught, chosen likewise",
        },
        "sets": parent.sets and parent.sets.model_dump() | {"measured": ()},  # the new group has none of its own
        "taxonomy": parent.taxonomy and parent.taxonomy.grown(learned.new).model_dump(),
        "outcomes": None,  # of other classes than there are now
        "heat_map": None,  # new classes are told by the embedding, not by the head
        "provenance": parent.provenance.model_dump() | {
            "commit": now["commit"], "versions": parent.provenance.versions | now["versions"],
        },
    }  # fmt: skip
    return bundle.derive(
        given.run, target, parent, changed,
        files={bundle.GRAPH_FILE: graph, parent.exemplars.file: content, **drawn},
        gone=[part.file for part in (*parent.golden, parent.outcomes, parent.heat_map) if part],
        card=_card(learned, added, compared), added=added, command=now["command"],
    )  # fmt: skip


def _exemplars(learned: Learned) -> tuple[bytes, int]:
    """The bundle's, then those of the new classes; how many."""
    known, taught = learned.known, (learned.made.side == TRAIN) & (learned.truth >= len(learned.parent.classes))
    rows, labels = learned.rows[taught], learned.truth[taught]
    chosen = choosing.choose(rows, labels, choosing.MOST_OF_A_CLASS)
    embedding = np.concatenate([known.embedding, rows[chosen]])
    classes = [*known.class_index.tolist(), *labels[chosen].tolist()]
    pictures = [*known.thumbnails, *([b""] * len(chosen))] if known.thumbnails else []
    return exemplars.encode(embedding, classes, pictures), len(embedding)


def _added(given: Learn, learned: Learned) -> Json:
    found, side = learned.made.found, learned.made.side
    new = set(learned.new)
    before = (learned.parent.provenance.added or {}).get("trained_keys", [])
    return {
        "new_classes": by_class([n for n in found.classes if n in new], found, side),
        "known_classes": by_class([n for n in found.classes if n not in new], found, side),
        "outliers": {s: int((found.outliers & (side == s)).sum()) for s in (TRAIN, CALIBRATION, COMPARED)},
        "labels": sources(given.added),
        "trained_keys": [*before, *(key_text(key) for key in found.keys[used(side)].tolist())],
    }  # fmt: skip


def _card(learned: Learned, added: Json, compared: Json) -> str:
    """The section that is appended to the parent's card, whose figures are those of the parent."""
    parent, group = learned.parent, inherited.group_name(learned.parent)
    named = {f"new class {name}": counts for name, counts in added["new_classes"].items()}
    named |= {f"more of {name}": counts for name, counts in added["known_classes"].items()}
    named["outliers"] = added["outliers"]
    rows = [[name, counts[TRAIN], counts[COMPARED]] for name, counts in named.items()]
    return "\n\n".join([
        "\n## Learned from the bundle alone",
        f"Version {parent.version} of `{parent.name}` (graph `{parent.sha256[:16]}`) learned {len(learned.new)} "
        "classes from images that people labelled and from its exemplars, without the images that it was trained on. "
        "Behind its graph stands a gate on the embedding (multinomial logistic regression), which hands an image over "
        "to a new class; any other image gets the answer that it got before, at the same thresholds. Everything above "
        f"was measured on the parent. The new classes are the group `{group}`. Its thresholds are from the images that "
        "were taught, each scored by a gate that was fitted without it; most are such as the parent refused, and the "
        "promise holds for images like these.",
        markdown_table(["", "taught", "compared on"], rows),
        "Both bundles on reviewed images that were not taught; the interval (95%) is that of the change, in points. "
        f"`{STAY}`: by a gate that was fitted without them.",
        compared_table(compared["figures"]),
    ]) + "\n"  # fmt: skip
