"""The part of a card that says what a pretrained backbone is, where its weights come from and what they have seen."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from training.layout import markdown_table

TUNED = {
    "frozen": "frozen: a head was trained on its features",
    "full": "tuned: all of its weights were trained on",
    "adapters": "tuned: adapters in its blocks were trained, its own weights stayed",
}
NAMES = {
    "backbone": "name",
    "library": "library",
    "weights": "weights",
    "weights_sha256": "sha256 of the weights",
    "tensors_sha256": "sha256 of the tensors that timm downloaded",
    "external_data_sha256": "sha256 of the weights beside the graph",
    "sha256": "sha256 of the file",
    "trained_on": "trained on",
    "licence": "licence of the weights",
    "tensors": "tensors matched",
    "layers": "features taken from",
    "int8_sha256": "sha256 of its int8 graph",
}


def pretrained(m: Manifest) -> Iterable[str]:
    """Nothing for a network that was trained from scratch."""
    facts, recipe = m.evaluation.get("backbone"), m.evaluation.get("recipe") or {}
    if not facts:
        return
    yield "## Pretrained backbone"
    seen = facts.get("trained_on")
    yield (
        f"The weights have seen {seen}: an image or a class of it is not new to this model, whatever set it is in."
        if seen
        else "What the weights were trained on is not recorded: of an image or a class that they have seen, no figure "
        "here says how the model does on what is new."
    )
    shown = m.input
    fit = "the whole image, stretched"
    if shown.fit == "crop":
        fit = f"the central {shown.crop_share:.4g} of the largest square" if shown.crop_share < 1 else "a central crop"
    parts = {"fp16": "fp16, what follows it fp32", "int8": "int8, what follows it fp32"}
    precision = parts.get(m.precision, m.precision)
    if recipe.get("backbone_precision") == "int8":
        precision += "; it was in int8 before the head was trained"
    rows = [[NAMES.get(key, key.replace("_", " ")), value] for key, value in facts.items() if key != "input"]
    rows += [
        ["use", TUNED.get(str(recipe.get("tune")), "-")],
        ["input", f"{shown.width_px} x {shown.height_px} pixels, {fit}, {shown.resampling}"],
        ["precision", precision],
    ]
    yield markdown_table(["", ""], rows)
