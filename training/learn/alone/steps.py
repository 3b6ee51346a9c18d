"""`tailguard learn BUNDLE`: the steps, in memory from beginning to end; the bundle appears whole or not at all."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import bundle, exemplars, images
from service.contract.bundle import Manifest
from service.contract.embedding import EMBEDDING
from service.contract.exemplars import Exemplars
from training.config import flag
from training.data.decode import MAX_PIXELS
from training.export.bundle import require_target
from training.layout import columns
from training.learn import reviewed
from training.learn.alone import gate, inherited
from training.learn.alone.graph import derivable, grown, head
from training.learn.alone.judged import comparison
from training.learn.alone.learned import Learned, Outputs
from training.learn.alone.sides import Sided, sided
from training.learn.alone.writing import write
from training.learn.command import Learn
from training.learn.sides import COMPARED, TRAIN
from training.network.session import session
from training.places import require_outside, require_writable
from training.runs import reserved
from training.runs.steps import step

BATCH_IMAGES = 64
OF_RUNS = ("work", "parent", "data", "outliers", "ood", "score", "threads", "on")


def learn(given: Learn) -> Path:
    """The folder of what the bundle `given.run` becomes. ValueError where it or the images do not suffice."""
    for name in OF_RUNS:
        if getattr(given, name) != Learn.model_fields[name].get_default(call_default_factory=True):
            raise ValueError(f"{flag(name)} is for a run; a bundle alone learns without it: leave it out")
    parent = bundle.read(given.run)
    known = require_suitable(parent, given.run)
    target = _target(given, parent)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        found = reviewed.read(given.added, [c.name for c in parent.classes], Path(folder) / "scan.npz", notes)
    made = sided(found, parent, given.compare_share, given.added, notes)
    print("\n".join([*notes, *_table(made, parent)]), flush=True)
    step("embeddings of the reviewed images")
    old_graph = (given.run / bundle.GRAPH_FILE).read_bytes()
    pixels = _pixels(found := made.found, parent)
    before = _ask(old_graph, pixels)
    step("fit the gate")
    learned = Learned(parent, known, made, before[EMBEDDING])
    fitted = gate.fit(learned.taught())
    module = head(fitted, parent, len(learned.new))
    graph = grown(old_graph, module, parent)
    step("compare with the bundle before")
    after = _ask(graph, pixels)
    crossed = learned.crossed(before, fitted, module)
    fields = inherited.grown(parent, learned.counts, crossed, learned.seen(after, learned.made.side == COMPARED))
    compared = comparison(learned, fitted, before, after, fields, given)
    step(f"write {target}")
    written = write(given, target, learned, graph, fields, compared)
    print(f"\n{target}: {len(written.classes)} classes, {len(found)} reviewed images; compare it in service, then "
          f"put it in force: tailguard promote --shadow {target}, tailguard promote")  # fmt: skip
    return target


def require_suitable(parent: Manifest, where: Path) -> Exemplars:
    """The exemplars. ValueError where the bundle does not hold what learning needs, naming it and the remedy."""
    remedy = "export its run again with this version, or learn from the run itself (tailguard learn RUN)"
    if parent.format == 1:
        raise ValueError(f"{where} has format 1, which holds no embedding: {remedy}")
    if parent.embedding is None:
        raise ValueError(f"the graph of {where} gives no embedding: {remedy}")
    if (known := exemplars.read(where, parent)) is None:
        raise ValueError(f"{where} holds no exemplars, so nothing says what its classes look like: {remedy}")
    classes = [c.name for c in parent.classes]
    if missing := [n for i, n in enumerate(classes) if not (known.class_index == i).any()]:
        raise ValueError(f"{where} holds no exemplar of {', '.join(missing[:5])}: {remedy}")
    if (score := parent.deciding_score) not in (can := derivable(parent)):
        raise ValueError(f"{where} decides by {score}, and what that says of a new class does not follow from what its "
                         f"graph gives (of {', '.join(can) or 'no score'} it does): learn from its run")  # fmt: skip
    return known


def _target(given: Learn, parent: Manifest) -> Path:
    require_writable(given.out, "--out")
    require_outside({"--out": given.out}, given.added)
    folder = given.out / (given.name or parent.name)
    version = given.version or reserved.first_free(folder)
    require_target(folder / version, given.name)
    reserved.require_free(folder / version)
    return folder / version


def _table(made: Sided, parent: Manifest) -> list[str]:
    new = set(made.new(parent))
    rows = [["", "taught", "compared on"]]
    for name in [*made.found.classes, ""]:
        own = made.found.labels == name
        title = f"{'new' if name in new else 'more of'} {name}" if name else "outliers"
        rows.append([title, *(str(int((own & (made.side == s)).sum())) for s in (TRAIN, COMPARED))])
    return columns(rows)


# ---- Images through a graph ------------------------------------------------------------------------------------------


def _pixels(found: reviewed.Reviewed, parent: Manifest) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3], as the service would show them to the graph."""
    return np.stack([
        images.load(Path(path).read_bytes(), parent.input, max_pixels=MAX_PIXELS).pixels for path in found.paths
    ])  # fmt: skip


def _ask(graph: bytes, pixels: NDArray[np.uint8]) -> Outputs:
    """Every output for all images."""
    opened = session(graph)
    names = [output.name for output in opened.get_outputs()]
    parts = [opened.run(names, {"images": pixels[i : i + BATCH_IMAGES]}) for i in range(0, len(pixels), BATCH_IMAGES)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
