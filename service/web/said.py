"""What an answer says beyond the class: a set of classes, and the node of a taxonomy, as schemas and as bodies."""

from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.contract.bundle import Manifest
from service.contract.sets import PredictionSets, SetFigures
from service.contract.taxonomy import Level, Node, Taxonomy, Told


class SetMember(BaseModel):
    label: str
    class_index: int
    probability: float | None = Field(description="null: the graph gave no finite number")


class ClassSet(BaseModel):
    """Classes among which the true one is, at this rate in each group of classes (conformal prediction)."""

    level: float = Field(description="share of in-distribution images whose set holds the true class")
    classes: list[SetMember] = Field(description="the most probable first")
    too_few: list[str] = Field(
        description="groups with too few calibration images for this level: all of their classes are in every set"
    )


class TaxonomyNode(BaseModel):
    """The deepest node above the classes that can be promised of a refused image."""

    node: str | None = Field(description="its name; null: nothing can be said")
    path: list[str] = Field(description="from the root down to the node")
    depth: int = Field(description="length of the path; 0: nothing can be said")
    probability: float | None = Field(description="of the node: the sum over the classes below it")
    promise: float | None = Field(
        description="share of in-distribution images told a node that are told the right one, at least; nothing is "
        "promised of images of no class"
    )


class TaxonomyFigures(BaseModel):
    """How the promise was made, and how it held on held-out images."""

    source: str
    promise: float
    levels: list[Level]
    measured: Told | None


NOTHING: dict[str, Any] = {"node": None, "path": [], "depth": 0, "probability": None, "promise": None}


def class_set(manifest: Manifest, sets: PredictionSets, probabilities: NDArray[Any], level: float) -> dict[str, Any]:
    """The set of one image from its probabilities [C], in the shape of ClassSet."""
    values = probabilities.tolist()
    return {
        "level": level,
        "classes": [
            {
                "label": manifest.classes[i].name,
                "class_index": i,
                "probability": values[i] if values[i] == values[i] else None,
            }
            for i in sets.of(probabilities, level)
        ],
        "too_few": list(sets.limits(level).too_few),
    }


def taxonomy_node(taxonomy: Taxonomy, node: Node | None) -> dict[str, Any]:
    """What is said of a refused image, in the shape of TaxonomyNode."""
    if node is None:
        return NOTHING
    return {
        "node": node.path[-1],
        "path": list(node.path),
        "depth": node.depth,
        "probability": node.probability,
        "promise": taxonomy.promise,
    }


def taxonomy_figures(taxonomy: Taxonomy | None) -> TaxonomyFigures | None:
    """None for a bundle without a tree."""
    if taxonomy is None:
        return None
    return TaxonomyFigures(
        source=taxonomy.source,
        promise=taxonomy.promise,
        levels=list(taxonomy.levels),
        measured=taxonomy.measured,
    )


def set_figures(manifest: Manifest) -> list[SetFigures] | None:
    """None for a bundle without sets."""
    return None if manifest.sets is None else list(manifest.sets.measured)
