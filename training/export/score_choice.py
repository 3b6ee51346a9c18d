"""The part of a card that says why this score decides, from `score_choice` in the manifest's evaluation."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from training.layout import markdown_table


def score_choice(m: Manifest) -> Iterable[str]:
    """The choice with its margin and what it was compared with; nothing where the score was named by hand."""
    choice = m.evaluation.get("score_choice")
    if not choice:
        return
    yield "## Why this score decides"
    text = f"`{choice['score']}` was chosen on calibration data, before any test image was looked at: {choice['why']}."
    if not choice["candidates"]:
        yield text
        return
    margin, own = choice["margin_over_method_score"], choice["method_score"]
    if margin is not None and choice["score"] != own:
        text += f" It is {100 * margin:+.1f} points from the method's own `{own}`."
    kinds = list(choice["images"])
    counts = " and ".join(f"{kind} ({images} images)" for kind, images in choice["images"].items())
    yield f"{text} Rule: {choice['rule']}. Compared on {counts}; AUROC in percent:"
    rows = [
        [f"`{row['score']}`", *(f"{100 * value:.1f}" for value in (*map(row["auroc"].get, kinds), row["mean_auroc"]))]
        for row in choice["candidates"]
    ]
    yield markdown_table(["score", *kinds, "mean"], rows)
