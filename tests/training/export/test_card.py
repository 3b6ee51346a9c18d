"""The card: complete, true to the manifest, and robust to what a manifest may lack; the plots: present and small."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.bundle import Manifest
from training.config import Config
from training.export import card
from training.export.about import AboutData

LEVELS = [i / 100 for i in range(101)]
NAMES = ["plane", "car", "bird", "cat"]


def _cost(shift=0.0, caught=0.8):
    return {
        "in_distribution_images": 200,
        "outlier_images": 300,
        "id_rejected": 0.05 + shift,
        "id_rejected_by_group": {"many": 0.0123, "medium": 0.04, "few": None},
        "id_rejected_by_predicted_group": {"many": 0.01, "medium": 0.04, "few": 0.2},
        "outliers_caught": caught,
        "outliers_caught_by_predicted_group": {"many": 0.8, "medium": 0.8, "few": None},
    }


def _point(threshold, test=True):
    measured = {"calibration": _cost(), "test": _cost(0.01) if test else None}
    groups = {"many": threshold - 0.05, "medium": threshold, "few": threshold + 0.1}
    return {
        "description": "keeps 95%",
        "threshold": threshold,
        "group_thresholds": groups,
        "global_cost": measured,
        "group_cost": measured,
    }


def _evaluation():
    found = {"auroc": 0.91234, "aupr": 0.8, "fpr95": 0.4, "fpr95_id_positive": 0.5, "aupr_id_positive": 0.7}
    found |= {"images": 1000, "acc_at_tpr": {"0.95": 0.88}}
    return {
        "conventions": "OOD is the positive class.",
        "images": 10000,
        "accuracy": 0.75,
        "class_accuracy": [0.9, 0.8, 0.7, None],
        "group_accuracy": {"many": 0.9, "medium": 0.75, "few": None},
        "ood": {"svhn": found, "a|b": found},
        "mean": found,
        "acc_at_fpr": {"0.0001": 0.7501, "0.1": 0.8},
        "reliability": {
            "confidence": [None, 0.3, 0.5, 0.7, 0.95],
            "accuracy": [None, 0.2, 0.4, 0.72, 0.9],
            "images": [0, 100, 200, 700, 9000],
            "ece": 0.0321,
        },
        "score": "msp",
        "int8_against_fp32": {"accuracy": -0.0012, "auroc": 0.0, "fpr95": 0.004, "decisions_changed": 0.011},
        "candidates": [
            {"name": "w32", "int8_bytes": 2800000, "ms_per_image": 1.234567, "auroc": 0.9, "shipped": True},
            {"name": "w64", "int8_bytes": 11200000, "accuracy": 0.8},
        ],
        "recipe": {"epochs": 100, "lr": 0.1, "views": [1, 2], "note": None},
        "data": {"train_images": 12406, "calibration_images": 200, "outlier_images": 300},
    }


def _quantiles():
    spread = {"many": (1.2, 9), "medium": (1.6, 6), "few": (2, 4), "all": (1.4, 6), "outliers": (6, 2)}
    random = np.random.default_rng(0)
    drawn = {k: np.quantile(random.beta(a, b, 2000), LEVELS).tolist() for k, (a, b) in spread.items()}
    return {"msp": drawn, "energy": drawn}


def make(evaluation=None, test=True, **changes):
    score = {"formula": "1 - max softmax", "temperature": 1.0}
    groups = ["many", "medium", "medium", "few"]
    fields = {
        "format": 1,
        "name": "toy",
        "version": "1",
        "created": "2025-01-02T03:04:05Z",
        "precision": "int8",
        "passes": 2,
        "input": {"height_px": 32, "width_px": 32, "fit": "stretch", "resampling": "bilinear"},
        "classes": [
            {"name": n, "train_count": 5000 // 4**i, "group": groups[i], "accuracy": 0.9 - i / 10, "rejected": None}
            for i, n in enumerate(NAMES)
        ],
        "scores": {"energy": score, "msp": score},
        "deciding_score": "msp",
        "operating_points": {"id95": _point(0.42, test), "ood95": _point(0.46, test)},
        "default_operating_point": "id95",
        "threshold_scope": "group",
        "calibration": {
            "temperature": 1.25,
            "in_distribution_images": 200,
            "outlier_images": 300,
            "images_by_group": {"many": 100, "medium": 80, "few": 20},
            "id_scores": [0.1, 0.2],
            "quantile_levels": LEVELS,
            "quantiles": _quantiles(),
        },
        "evaluation": _evaluation() if evaluation is None else evaluation,
        "provenance": {
            "method": "pascl-abf",
            "dataset": "cifar10-lt",
            "seed": 7,
            "command": "python -m training train",
            "commit": "abc1234",
            "versions": {"torch": "2.13.0"},
        },
        "golden": [],
        "files": {"model.onnx": "f" * 64},
    }
    return Manifest.model_validate(fields | changes)


@pytest.fixture(scope="module")
def text():
    return card.render(make())


def _row(text, *cells):
    pattern = r"\| " + r" \| ".join(re.escape(c) for c in cells)
    return re.search(pattern, text)


def test_every_section_is_there(text):
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "For and not for", "Data", "Recipe", "By group", "By class", "Operating points", "By OOD set", "Calibration",
        "Candidates", "int8 against fp32", "Provenance", "Licence",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "cells",
    [
        ("", "75.00%", "91.23%", "80.00%", "40.00%"),
        ("train images", "12406"),
        ("epochs", "100"),
        ("many", "1", "5000", "5000", "90.00%", "1.23%"),
        ("medium", "2", "312 to 1250", "1562", "75.00%", "4.00%"),
        ("few", "1", "78", "78", "60.00%", "-"),
        ("all", "4", "-", "6640", "75.00%", "6.00%"),
        ("car", "medium", "1250", "80.00%", "-"),
        ("`id95`", "0.42", "0.37", "0.42", "0.52"),
        ("`id95`", "global", "calibration", "200", "5.00%", "1.23%", "4.00%", "-", "80.00%"),
        ("`ood95`", "group", "test", "200", "6.00%", "1.23%", "4.00%", "-", "80.00%"),
        ("svhn", "1000", "91.23%", "80.00%", "40.00%", "70.00%", "50.00%"),
        ("**mean**", "-", "91.23%"),
        ("95% of OOD images caught", "88.00%"),
        ("0.01% of in-distribution images rejected", "75.01%"),
        ("w32", "2800000", "1.235", "90.00%", "yes", "-"),
        ("w64", "11200000", "-", "-", "-", "80.00%"),
        ("accuracy", "-0.12 points"),
        ("decisions changed", "1.10%"),
        ("seed", "7"),
        ("torch", "2.13.0"),
    ],
)
def test_a_row_of_each_table(text, cells):
    assert _row(text, *cells), cells


def test_statements(text):
    assert "note" not in text.partition("## Recipe")[2].partition("##")[0]  # which was not set
    assert "chosen on the calibration split: 200 in-distribution images (100 many, 80 medium, 20 few)" in text
    assert "OOD is the positive class." in text
    assert "The terms of the bundle are not stated." in text
    assert "python -m training train" in text


@pytest.mark.parametrize(
    ("accuracies", "alike", "mixed", "always", "false_alarms"),
    [
        ((0.9, 0.8, 0.7, None), "80.0%", "87.1%", "76.2%", False),
        ((0.7, 0.9, 0.9, 0.9), "85.0%", "74.9%", "75.3%", True),
    ],
)
def test_classes_of_unlike_shares_are_compared_with_always_saying_one(accuracies, alike, mixed, always, false_alarms):
    """A factory whose model found the defects saw a third of its good parts flagged, and the card did not say so."""
    manifest = make()
    rows = [c.model_copy(update={"accuracy": a}) for c, a in zip(manifest.classes, accuracies, strict=True)]
    text = card.render(manifest.model_copy(update={"classes": rows}))
    assert f"{alike} where every class comes alike often, {mixed} in the mix" in text
    assert f"always saying plane would be right in {always}" in text
    assert ("price of false alarms" in text) == false_alarms
    one_group = {"classes": [c.model_copy(update={"group": "many"}) for c in rows], "groups": manifest.groups[:1]}
    assert "always saying" not in card.render(manifest.model_copy(update=one_group))


def test_tables_are_well_formed(text):
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1, block[0]


def test_a_name_of_two_lines_breaks_no_table(monkeypatch):
    monkeypatch.setitem(globals(), "NAMES", ["plane", "car\nred", "bird", "cat"])
    written = card.render(make())
    assert _row(written, "car red", "medium", "1250")
    assert "into plane, car red, bird and cat" in written


def test_plots_are_named_as_the_card_refers_to_them(text):
    manifest = make()
    drawn = card.plots(manifest)
    assert sorted(re.findall(r"\]\((plots/\S+)\)", text)) == sorted(drawn)
    for content in drawn.values():
        assert Image.open(io.BytesIO(content)).format == "PNG"
        assert len(content) < 60_000


@pytest.mark.parametrize("empty", [{}, {"reliability": {"images": [0], "confidence": [None], "accuracy": [None]}}])
def test_a_manifest_without_results(empty):
    manifest = make(evaluation=empty, test=False)
    text = card.render(manifest)
    assert _row(text, "`id95`", "group", "test", "-", "-", "-", "-", "-", "-")
    assert "No OOD set was given" in text
    assert "AUROC |" not in text
    assert "Candidates" not in text
    assert list(card.plots(manifest)) == re.findall(r"\]\((plots/\S+)\)", text) == ["plots/scores.png"]


def test_one_operating_point_and_no_outliers():
    point = _point(0.4) | {"description": "only one"}
    manifest = make(operating_points={"id95": point}, threshold_scope="global")
    quantiles = {"msp": {g: manifest.calibration.quantiles["msp"][g] for g in manifest.group_names}}
    bare = make(operating_points={"id95": point}, calibration=manifest.calibration.model_dump() | {
        "quantiles": quantiles, "outlier_images": 0,
    })  # fmt: skip
    assert "only one" in card.render(bare)
    assert card.plots(bare)["plots/scores.png"]


# ---- Whose bundle it is ----


def test_the_card_says_whose_the_data_are_and_which_images_it_holds():
    about = {"name": "Wadden plankton", "licence": "CC BY 4.0", "description": "Plankton of the Wadden Sea, one net."}
    said = {"data_set": about, "licence": "Proprietary", "examples": {"given": 3}}
    text = card.render(make(_evaluation() | said))
    assert "Plankton of the Wadden Sea, one net." in text
    assert "| licence of the data | CC BY 4.0 |" in text
    assert "Proprietary. The bundle holds 3 example images given at export: see examples/." in text
    assert "The data set has terms of its own: CC BY 4.0." in text
    assert "holds no image" not in text
    drawn = card.render(make(_evaluation() | said | {"examples": {"given": 0}}))
    assert "The example images are drawn by script: the bundle holds no image of its data set." in drawn


@pytest.mark.parametrize(
    ("given", "name", "slug"),
    [
        ({"dataset": "cifar10", "data": Path("x")}, "CIFAR-10", "cifar10"),
        ({"dataset": "folder", "data": Path("/photos/My Birds (2024)")}, "My Birds (2024)", "my-birds-2024"),
        ({"dataset": "folder", "data": Path("/")}, "folder", "folder"),
    ],
)
def test_a_data_set_is_called_after_its_benchmark_or_folder(given, name, slug):
    about = AboutData.of(Config(**given))
    assert (about.name, about.slug) == (name, slug)
    assert AboutData.of(Config(**given), "Wadden plankton").slug == "wadden-plankton"


def test_the_card_says_why_this_score_decides_and_what_it_was_compared_with():
    rows = [
        {"score": "energy", "mean_auroc": 0.8, "auroc": {"held-back outliers": 0.9, "left-out classes": 0.7}},
        {"score": "msp", "mean_auroc": 0.75, "auroc": {"held-back outliers": 0.85, "left-out classes": 0.65}},
    ]
    choice = {
        "score": "energy", "why": "the best single score", "rule": "the largest mean", "method_score": "msp",
        "margin_over_method_score": 0.05, "images": {"held-back outliers": 300, "left-out classes": 200},
        "candidates": rows,
    }  # fmt: skip
    found = card.render(make(_evaluation() | {"score_choice": choice}))
    assert "`energy` was chosen on calibration data" in found
    assert "It is +5.0 points from the method's own `msp`." in found
    assert "held-back outliers (300 images) and left-out classes (200 images)" in found
    assert re.search(r"\| `msp` +\| 85.0 +\| 65.0 +\| 75.0 +\|", found)
    alone = choice | {"candidates": [], "images": {}, "why": "the method's own"}
    assert "the method's own" in card.render(make(_evaluation() | {"score_choice": alone}))
    assert "Why this score decides" not in card.render(make())


def test_the_card_says_what_classes_of_few_images_allow():
    classes = [
        {"name": n, "train_count": count, "group": g, "accuracy": None, "rejected": None}
        for n, count, g in (("plane", 500, "many"), ("car", 5, "medium"), ("bird", 4, "medium"), ("cat", 1, "few"))
    ]
    found = card.render(make(classes=classes))
    assert "Classes without a calibration image, and their training images: bird (4), cat (1)." in found
    with_validation = _evaluation() | {"uncalibrated": ["plane"]}
    assert "their training images: plane (500)." in card.render(make(with_validation, classes=classes))
    assert "Classes without a calibration image" not in card.render(make())


def test_the_card_of_many_classes_can_be_read():
    classes = [
        {"name": f"<sp. {i}>", "train_count": 3, "group": "few", "accuracy": None, "rejected": None} for i in range(400)
    ]
    found = card.render(make(classes=classes))
    assert r"into \<sp. 0>, \<sp. 1>, \<sp. 2>, \<sp. 3>, \<sp. 4> and 395 more, setting" in found
    assert (
        r"training images: \<sp. 0> (3), \<sp. 1> (3), \<sp. 2> (3), \<sp. 3> (3), \<sp. 4> (3), 395 more. They"
        in found
    )
    assert r"| \<sp. 399> | few | 3 |" in found


def test_a_head_on_a_pretrained_backbone_is_not_measured_by_the_papers_recipe():
    recipe = {"backbone": "tf_efficientnet_lite0", "width": 64, "epochs": 10, "batch_images": 256}
    found = card.render(make(_evaluation() | {"recipe": recipe}))
    assert "A head on the pretrained backbone `tf_efficientnet_lite0`." in found
    assert "instead of" not in found
