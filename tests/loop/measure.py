"""What a bundle of the simulation does on images that were never in the stream."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import bundle
from tests.loop.stream import Photo
from tests.models.fresh import refused
from training.data.fitted import Fitted
from training.data.processes import usable_cpus
from training.export.graph import onnx_predict


def measure(
    folder: Path, held_back: Sequence[Photo], new: Sequence[str], group_of: Mapping[str, str]
) -> dict[str, Any]:
    """Shares of `held_back`. `new`: held-out classes that have come by now; `group_of`: of the first model's classes.

    accuracy: the class is right, whether accepted or not; of a new class only where the model has it by that name.
    refused: of known images, by the group of their class. caught: of what the model has no class for.
    """
    manifest = bundle.read(folder)
    names = [c.name for c in manifest.classes]
    source = [str(photo.path) for photo in held_back]
    predict = onnx_predict((folder / bundle.GRAPH_FILE).read_bytes(), workers=usable_cpus())
    outputs = predict(Fitted(source, np.arange(len(source), dtype=np.uint64), manifest.input))
    flags = refused(manifest, outputs)
    predicted = np.array(names)[outputs.predictions]
    truths = np.array([photo.truth for photo in held_back])
    kinds = np.array([photo.kind for photo in held_back])
    groups = np.array([group_of.get(truth, "") for truth in truths])
    named = list(dict.fromkeys(group_of.values()))
    right, known = predicted == truths, kinds == "known"
    arrived = (kinds == "new") & np.isin(truths, list(new))
    learned = (kinds == "new") & np.isin(truths, names)

    def share(values: Any, of: Any) -> float | None:
        return float(values[of].mean()) if of.any() else None

    return {
        "classes": len(names),
        "learned": sorted(set(truths[learned].tolist())),
        "known accuracy": share(right, known),
        "known accuracy of the group": {g: share(right, known & (groups == g)) for g in named},
        "known refused": share(flags, known),
        "known refused of the group": {g: share(flags, known & (groups == g)) for g in named},
        "new accuracy": share(right, arrived),  # of all that came: what was not learned counts as wrong
        "new accuracy of those learned": share(right, learned),
        "new accepted and right": share(right & ~flags, arrived),
        "unknown caught": share(flags, kinds == "unknown"),
        "new and not learned caught": share(flags, (kinds == "new") & ~learned),
        "images": {kind: int((kinds == kind).sum()) for kind in ("known", "new", "unknown")},
    }
