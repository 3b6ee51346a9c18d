"""CARD.md and its two plots, made from a bundle's manifest and from nothing else.

A card says what the model is for and not for, what it was made of, and what its decisions cost. Shares are printed in
percent; what the manifest does not hold is printed as a dash. The plots lie beside the card, under plots()'s names.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.contract.bundle import Cost, Manifest
from training.evaluation.evaluate import CONVENTIONS
from training.export.about import against_the_paper, known_images, licence_text
from training.export.answers import sets, taxonomy
from training.export.lineage import learned
from training.export.plots import RELIABILITY_PLOT, SCORES_PLOT, plots
from training.export.promises import by_share, few_images, measured_on, promises, rests_on
from training.export.score_choice import score_choice
from training.export.trunk import pretrained
from training.export.why import why
from training.layout import DASH, anded, escaped, markdown_table, named

__all__ = ["plots", "render"]

SHARES = ("acc", "auroc", "aupr", "fpr", "tpr", "rejected", "caught", "share", "changed", "ece")  # printed in percent
OOD_COLUMNS = {
    "images": "images",
    "AUROC": "auroc",
    "AUPR": "aupr",
    "FPR95": "fpr95",
    "AUPR (ID positive)": "aupr_id_positive",
    "FPR95 (ID positive)": "fpr95_id_positive",
}

# ---- The card -------------------------------------------------------------------------------------------------------


def render(manifest: Manifest) -> str:
    """The text of CARD.md, in Markdown. It refers to the plots by the relative paths under which plots() names them."""
    parts = [
        _purpose, _ingredients, pretrained, _groups, _operating_points, why, _ood, _calibration, sets, taxonomy,
        _choice, known_images, _provenance,
    ]  # fmt: skip
    return "\n\n".join(block.strip("\n") for part in parts for block in part(manifest)) + "\n"


def _purpose(m: Manifest) -> Iterable[str]:
    results = m.evaluation
    mean = results.get("mean") or {}
    tail = " with a long tail" if len(m.group_names) > 1 else ""
    yield f"# {m.name}, version {m.version}"
    yield (
        f"An image classifier for {len(m.classes)} classes{tail} that can say it does not know. It takes "
        f"{m.input.width_px}x{m.input.height_px} pixel images, gives a class and the scores "
        f"{anded(f'`{s}`' for s in m.scores)}, and rejects an image whose `{m.deciding_score}` lies above a calibrated "
        f"threshold. Graph: {m.precision}, {m.passes} pass{'es' if m.passes > 1 else ''} through the trunk per image."
    )
    ood = {f"mean {key.upper()}": _share(mean[key]) for key in ("auroc", "aupr", "fpr95") if key in mean}
    yield markdown_table([measured_on(m), "accuracy", *ood], [["", _share(results.get("accuracy")), *ood.values()]])
    yield "## For and not for"
    yield (
        f"For: sorting images that look like `{m.provenance.dataset}` into "
        f"{anded(named([c.name for c in m.classes]))}, setting aside what resembles none of them, and trying out "
        "TailGuard.\n\n"
        "Not for: classes outside this list; decisions about people or safety without a person who checks them; images "
        "from another source (another camera, size or style) before the thresholds are calibrated on such images. An "
        "accepted image is not thereby in-distribution: see By OOD set for what slips through. The p-value bounds "
        "false alarms on in-distribution images only; it does not say how many outliers are caught."
    )


def _ingredients(m: Manifest) -> Iterable[str]:
    data, recipe = m.evaluation.get("data") or {}, m.evaluation.get("recipe") or {}
    yield "## Data"
    about = m.evaluation.get("data_set") or {}
    if about.get("description"):
        yield about["description"]
    given = {k: _cell(k, v) for k, v in data.items()}
    trained = sum(c.train_count for c in m.classes)
    yield _pairs(
        {
            "dataset": m.provenance.dataset,
            "licence of the data": about.get("licence") or DASH,
            "training images of all classes": trained,
            **given,
        }
    )
    yield "## Recipe"
    yield against_the_paper(recipe)
    own = {k: _cell(k, v) for k, v in recipe.items() if v is not None and not k.startswith("pretrained_")}
    yield _pairs({"method": m.provenance.method, **own})


def _groups(m: Manifest) -> Iterable[str]:
    point = m.operating_points[m.default_operating_point]
    test = point.cost(m.threshold_scope).test
    default = f"`{m.default_operating_point}`, thresholds: {m.threshold_scope}"
    rows: list[list[Any]] = []
    for group in m.group_names:
        members = [c for c in m.classes if c.group == group]
        counts = [c.train_count for c in members]
        span = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else DASH
        rejected = test.id_rejected_by_group.get(group) if test else None
        right = [c.accuracy for c in members if c.accuracy is not None]
        accuracy = sum(right) / len(right) if right else None
        rows.append([group, len(counts), span, sum(counts), _share(accuracy), _share(rejected)])
    overall, every = _share(m.evaluation.get("accuracy")), _share(test.id_rejected if test else None)
    rows.append(["all", len(m.classes), DASH, sum(c.train_count for c in m.classes), overall, every])
    yield "## By group"
    yield f"Figures: {measured_on(m)}. Rejected: good images turned away at the default operating point ({default})."
    yield markdown_table(["group", "classes", "train images per class", "train images", "accuracy", "rejected"], rows)
    yield "## By class"
    yield markdown_table(
        ["class", "group", "train images", "accuracy", "rejected"],
        [[escaped(c.name), c.group, c.train_count, _share(c.accuracy), _share(c.rejected)] for c in m.classes],
    )
    yield from by_share(m)
    yield from few_images(m)


def _operating_points(m: Manifest) -> Iterable[str]:
    yield "## Operating points"
    yield "\n".join(f"- `{name}`: {point.description}" for name, point in m.operating_points.items())
    yield (
        f"An image is rejected when its `{m.deciding_score}` is strictly larger than the threshold, which is one for "
        "all images or one for each group of the predicted class."
    )
    limits = [
        [f"`{name}`", _number(p.threshold), *(_number(p.group_thresholds[g]) for g in m.group_names)]
        for name, p in m.operating_points.items()
    ]
    yield markdown_table(["threshold", "global", *m.group_names], limits)
    rows = []
    for name, point in m.operating_points.items():
        for scope, cost in (("global", point.global_cost), ("group", point.group_cost)):
            rows += [[f"`{name}`", scope, "calibration", *_costs(cost.calibration, m.group_names)]]
            rows += [[f"`{name}`", scope, "test", *_costs(cost.test, m.group_names)]]
    groups = [f"{g} rejected" for g in m.group_names]
    yield markdown_table(
        ["point", "thresholds", "measured on", "ID images", "ID rejected", *groups, "outliers caught"], rows
    )
    yield f"Groups of the true class. Test: {measured_on(m)}; outliers caught is the mean over the OOD sets."


def _costs(cost: Cost | None, names: Sequence[str]) -> list[Any]:
    if cost is None:
        return [DASH] * (3 + len(names))
    groups = [_share(cost.id_rejected_by_group.get(g)) for g in names]
    return [cost.in_distribution_images, _share(cost.id_rejected), *groups, _share(cost.outliers_caught)]


def _ood(m: Manifest) -> Iterable[str]:
    sets: Mapping[str, Mapping[str, Any]] = m.evaluation.get("ood") or {}
    mean = m.evaluation.get("mean") or {}
    yield "## By OOD set"
    if sets:
        yield m.evaluation.get("conventions") or CONVENTIONS
        rows = [[name, *(_cell(k, row.get(k)) for k in OOD_COLUMNS.values())] for name, row in sets.items()]
        rows.append(["**mean**", *(DASH if k == "images" else _share(mean.get(k)) for k in OOD_COLUMNS.values())])
        yield markdown_table(["set", *OOD_COLUMNS], rows)
    else:
        yield "No OOD set was given (`--ood`), so how many unknown things slip through was not measured."
    images = _cell("images", m.evaluation.get("images"))
    yield f"In-distribution images, {measured_on(m)}: {images}. Score: `{m.deciding_score}`."
    at_tpr, at_fpr = mean.get("acc_at_tpr") or {}, m.evaluation.get("acc_at_fpr") or {}
    kept = [[f"{100 * float(n):g}% of OOD images caught", _share(v)] for n, v in at_tpr.items()]
    kept += [[f"{100 * float(n):g}% of in-distribution images rejected", _share(v)] for n, v in at_fpr.items()]
    if kept:
        yield markdown_table(["accuracy on the images kept with", ""], kept)


def _calibration(m: Manifest) -> Iterable[str]:
    c = m.calibration
    by_group = ", ".join(f"{c.images_by_group.get(g, 0)} {g}" for g in m.group_names)
    ece = (m.evaluation.get("reliability") or {}).get("ece")
    yield "## Calibration"
    yield (
        f"Temperature {_number(c.temperature)} and all thresholds were chosen on {rests_on(m)}: "
        f"{c.in_distribution_images} in-distribution images ({by_group}) and {c.outlier_images} outliers, none of them "
        f"test images. Expected calibration error {measured_on(m)}: {_share(ece)}."
    )
    if any(point.level for point in m.operating_points.values()):
        yield from promises(m)
    yield f"![Scores of in-distribution images and outliers]({SCORES_PLOT})"
    if ece is not None:
        yield f"![Reliability of the probabilities]({RELIABILITY_PLOT})"


def _choice(m: Manifest) -> Iterable[str]:
    yield from score_choice(m)
    if candidates := m.evaluation.get("candidates"):
        columns = list(dict.fromkeys(key for row in candidates for key in row))
        yield "## Candidates"
        yield "Chosen on the calibration split: none of these figures was measured on test images."
        yield markdown_table(columns, [[_cell(k, row.get(k)) for k in columns] for row in candidates])
    if against := m.evaluation.get(f"{m.precision}_against_fp32"):
        yield f"## {m.precision} against fp32"
        yield f"What changed on the same images: {m.precision} less fp32, and the share of decisions that differ."
        yield _pairs({k: _change(k, v) for k, v in against.items()})


def _provenance(m: Manifest) -> Iterable[str]:
    p = m.provenance
    facts = {"created": m.created.isoformat(timespec="seconds"), "seed": p.seed, "commit": f"`{p.commit}`"}
    yield from learned(m)
    yield "## Provenance"
    yield _pairs({**facts, "sha256 of the graph": f"`{m.sha256}`", **p.versions})
    yield f"```\n{p.command}\n```"
    yield "## Licence"
    yield licence_text(m)


# ---- Cells ----------------------------------------------------------------------------------------------------------


def _pairs(values: Mapping[str, Any]) -> str:
    return markdown_table(["", ""], [[key.replace("_", " "), value] for key, value in values.items()])


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _share(value: Any) -> str:
    return DASH if _absent(value) else f"{100 * value:.2f}%"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _cell(key: str, value: Any) -> str:
    """A value of unknown kind, by its key: a share, a number, a flag, text; lists and mappings as JSON."""
    if _absent(value):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _share(value) if any(word in key for word in SHARES) else _number(value)
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _change(key: str, value: Any) -> str:
    """A difference of shares in signed percentage points; decisions_changed is itself a share."""
    signed = isinstance(value, float) and not math.isnan(value) and "changed" not in key
    return f"{100 * value:+.2f} points" if signed else _cell(key, value)
