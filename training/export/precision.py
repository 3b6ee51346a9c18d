"""In which precision a graph is served: int8 for CPUs, fp16 for GPUs, fp32 where neither is wanted or can be."""

import sys
from typing import Literal

import numpy as np

from training.data.loading import Data
from training.export.half import halved
from training.export.parity import ExportError
from training.network.frozen import FrozenBackbone, quantization_sample
from training.network.preprocessing import BackboneError
from training.network.quantized import quantize
from training.runs.files import Json

Precision = Literal["fp32", "int8", "fp16"]
Asked = Literal["auto", "fp32", "int8", "fp16"]
MOST_MOVED = 0.2  # of decisions; int8 of a sound trunk changes 7 to 9%, mostly next to a threshold (training/LOG.md)
FP16_ON_A_CPU = "fp16 gains on a GPU only: a CPU serves it too, computing in fp32 and no faster for it"


def in_int8(frozen: FrozenBackbone | None) -> bool:
    """Whether the backbone that a run stands on is in int8, and the head has learnt on what it gives."""
    return frozen is not None and frozen.backbone.int8 is not None


def require_precision(asked: Asked, frozen: FrozenBackbone | None) -> None:
    """ValueError where a run that stands on an int8 backbone is wanted in another precision."""
    if in_int8(frozen) and asked not in ("auto", "int8"):
        raise ValueError(
            f"--precision {asked}: the run stands on an int8 backbone; for {asked} train with --backbone-precision fp32"
        )


def at_precision(graph: bytes, asked: Asked, pixels: Data, frozen: FrozenBackbone | None) -> tuple[bytes, Precision]:
    """The fp32 `graph` in the precision `asked` for, and which it is: auto is int8, or fp32 where int8 does not suit.

    int8 takes its ranges from training images of `pixels`. Raises BackboneError where int8 was asked for and cannot be,
    HalfError where no trunk is found for fp16.
    """
    if in_int8(frozen):
        return graph, "int8"
    if asked == "fp16":
        print(FP16_ON_A_CPU, file=sys.stderr)
        return halved(graph), "fp16"
    if asked == "fp32":
        return graph, "fp32"
    try:
        return quantize(graph, quantization_sample(pixels.train.images)), "int8"
    except BackboneError as error:
        if asked == "int8":
            raise
        print(f"--precision auto: exported in fp32, because {error}", file=sys.stderr)
        return graph, "fp32"


def refuse(asked: Asked, precision: Precision, moved: float) -> None:
    """Say why `auto` does not take a smaller graph that decides otherwise; ExportError where it was asked for."""
    why = f"{precision} would change {moved:.1%} of the decisions of fp32 (at most {MOST_MOVED:.0%} is allowed)"
    if asked != "auto":
        remedy = "export with --precision fp32"
        if precision == "int8":
            remedy += ", or train with --backbone-precision int8, so that the head learns on what is served"
        raise ExportError(f"{why}: nothing was written; {remedy}")
    print(f"--precision auto: exported in fp32, because {why}", file=sys.stderr)


def compare(full: Json, made: Json, decisions_changed: float) -> Json:
    """A smaller graph minus fp32: accuracy, and AUROC and FPR95 as means over the OOD sets; decisions changed.

    Over the sets that both were measured on: there may be others since the calibration, which is where `full` is from.
    Figures that are cross-fitted are those of heads in fp32, whatever the graph: of it they say nothing.
    """
    if "figures" in made:
        return {"decisions_changed": decisions_changed}
    out: Json = {"accuracy": made["accuracy"] - full["accuracy"]}
    one, two = full.get("ood") or {}, made.get("ood") or {}
    if shared := [name for name in two if name in one and one[name]["images"] == two[name]["images"]]:
        out |= {key: float(np.mean([two[n][key] - one[n][key] for n in shared])) for key in ("auroc", "fpr95")}
    return out | {"decisions_changed": decisions_changed}
