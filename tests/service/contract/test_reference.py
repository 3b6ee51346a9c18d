"""service/contract/reference.py and format1.py: p-values, thresholds, and what a manifest may say of groups."""

import json
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.contract import bundle
from service.contract.bundle import BundleError
from service.contract.decision import p_value
from service.contract.format1 import upgraded
from service.contract.reference import Reference, false_alarms
from tests.live import ROOT
from tests.service import tiny

STEPS = Reference(images=3, borrowed=0, scores=(1.0, 2.0, 3.0), p_values=(1.0, 0.75, 0.5, 0.25))


@pytest.mark.parametrize(
    ("score", "expected"),
    [(-math.inf, 1), (1, 1), (1.5, 0.75), (2, 0.75), (3, 0.5), (3.1, 0.25), (math.inf, 0.25), (math.nan, 0.25)],
)
def test_p_value_of_a_step(score: float, expected: float) -> None:
    assert STEPS.p_value(score) == expected


def test_the_threshold_is_the_largest_score_above_the_false_alarms() -> None:
    assert STEPS.threshold(0.75) == 3.0
    assert STEPS.threshold(0.6) == 3.0  # p = .5 is above .4
    assert STEPS.threshold(0.5) == 2.0
    with pytest.raises(ValueError, match=r"3 calibration images give no p-value below 0\.25: .* a level of 0\.8"):
        STEPS.threshold(0.8)


def test_false_alarms_have_no_rounding_error() -> None:
    assert [false_alarms(level) for level in (0.95, 0.9, 0.99, 0.999)] == [0.05, 0.1, 0.01, 0.001]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": (1.0, 1.0, 2.0)}, "strictly ascending"),
        ({"p_values": (1.0, 0.5)}, "3 scores need 4 p-values, not 2"),
        ({"p_values": (1.0, 0.5, 0.75, 0.25)}, "descending"),
        ({"p_values": (1.0, 0.5, 0.25, 0.0)}, "above 0"),
        ({"scores": (), "p_values": (1.0,)}, "at least 1 item"),
    ],
)
def test_a_reference_that_is_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Reference.model_validate(STEPS.model_dump() | changes)


# ---- What a manifest may say ----


def levelled(**changes: Any) -> dict[str, Any]:
    """The tiny manifest with an id95 that follows from its references."""
    fields = tiny.manifest()
    limit = tiny.ID_SCORES[94]
    thresholds = dict.fromkeys(tiny.GROUPS, limit)
    point = fields["operating_points"]["id95"] | {"level": 0.95, "threshold": limit, "group_thresholds": thresholds}
    return fields | {"operating_points": {"id95": point | changes}}


def test_thresholds_with_a_level_are_those_of_the_references(tmp_path: Path) -> None:
    bundle.write(tmp_path / "1", levelled(), tiny.files())
    with pytest.raises(BundleError, match=r"id95 has a threshold of -5\.0 for all: its reference says"):
        bundle.write(tmp_path / "2", levelled(threshold=-5.0), tiny.files())
    others = dict.fromkeys(tiny.GROUPS, tiny.ID_SCORES[94]) | {"few": -5.0}
    with pytest.raises(BundleError, match=r"id95 has a threshold of -5\.0 for few: its reference says"):
        bundle.write(tmp_path / "3", levelled(group_thresholds=others), tiny.files())
    with pytest.raises(BundleError, match=r"99 calibration images give no p-value below 0\.01"):
        bundle.write(tmp_path / "4", levelled(level=0.995), tiny.files())


def classes(*names: str) -> dict[str, Any]:
    rows = tiny.manifest()["classes"]
    return {"classes": [row | {"name": name} for row, name in zip(rows, names, strict=True)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (classes("red", "outlier", "blue"), "a class is called 'outlier', which is how feedback names an image of no"),
        (classes("red", "", "blue"), "a class is called '': give it a name"),
        (classes("red", " \t", "blue"), r"a class is called ' \\t': give it a name"),
        (classes("red", "red", "blue"), r"class names repeat: \['red'\]"),
        ({"groups": [{"name": "all", "least_images": 1, "most_images": 2}]}, "a group cannot be called 'all'"),
        ({"groups": [{"name": "many", "least_images": 3, "most_images": 2}]}, "bounds 3 to 2"),
        ({"groups": tiny.manifest()["groups"][:2]}, r"classes are in groups \['few'\], which are none of"),
        ({"groups": tiny.manifest()["groups"] * 2}, "group names repeat"),
        ({"calibration": tiny.manifest()["calibration"] | {"class_shares": [1.0]}}, "give one per class"),
        ({"calibration": tiny.manifest()["calibration"] | {"references": {"all": tiny.whole_reference()}}},
         r"references lack \['few', 'many', 'medium'\]"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.write(tmp_path / "1", tiny.manifest(**changes), tiny.files())


def test_a_class_called_outlier_is_refused_at_load(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"name": "green"', '"name": "outlier"'))
    with pytest.raises(BundleError, match="a class is called 'outlier'"):
        bundle.read(folder)


# ---- Format 1 ----


def test_the_embedded_bundle_is_format_1_and_decides_as_before() -> None:
    folder = ROOT / "models" / "cifar10-lt" / "1"
    manifest, raw = bundle.read(folder), json.loads((folder / "manifest.json").read_text())
    assert (manifest.format, raw["format"]) == (1, 1)
    assert manifest.group_names == ("many", "medium", "few")
    assert [(g.least_images, g.most_images) for g in manifest.groups] == [(1616, 4500), (209, 969), (45, 125)]
    assert manifest.operating_points["id95"].group_thresholds == raw["operating_points"]["id95"]["group_thresholds"]
    scores, n = raw["calibration"]["id_scores"], raw["calibration"]["in_distribution_images"]
    assert len(scores) == n
    for score in (*scores, *(s + 1e-9 for s in scores), -math.inf, math.inf):
        for scope in ("group", "global"):
            found = p_value(manifest, score, scope, "few")  # type: ignore[arg-type]
            assert found == (1 + n - bisect_left(scores, score)) / (n + 1)


@pytest.mark.parametrize(("images", "kept"), [(5, 5), (10, 3), (4001, 2000), (5000, 2000), (100_000, 2000)])
def test_thinned_scores_of_format_1_never_understate_a_p_value(images: int, kept: int) -> None:
    """Scores 1 to n, of which format 1 kept evenly spaced ones. Above 2 x 2,000 its old rule did."""
    thinned = [1.0 + round(j * (images - 1) / (kept - 1)) for j in range(kept)]
    raw = json.loads((ROOT / "models" / "cifar10-lt" / "1" / "manifest.json").read_text())
    raw["calibration"] |= {"id_scores": thinned, "in_distribution_images": images}
    found = Reference.model_validate(upgraded(raw)["calibration"]["references"]["all"])
    step = (images - 1) / (kept - 1)
    for score in (*(1.0 + i * images / 997 for i in range(997)), images - 0.5, images + 1):
        exact = (1 + images - math.ceil(max(score, 1)) + 1) / (images + 1)
        assert exact <= found.p_value(score) + 1e-12 <= exact + (step + 2) / images


@pytest.mark.parametrize("content", [{"format": 1}, {"format": 1, "classes": [1]}, [], 7, None, {"format": 3}])
def test_what_is_no_format_1_is_left_as_it_is(content: Any) -> None:
    assert upgraded(content) == content
