"""The page's decision is the service's: hundreds of rows, drawn and at every edge, through both, field by field."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.browser import folder
from service.contract import bundle, exemplars
from service.contract.bundle import Manifest
from service.contract.decision import decide_row
from service.contract.exemplars import Exemplars
from service.contract.sets import PredictionSets
from service.contract.taxonomy import Tree
from service.web.said import class_set, taxonomy_node
from tests import live
from tests.service import tiny

BUNDLES = ["models/cifar10-lt/1", "models/cifar10-lt/2", "models/groceries/1"]
ROWS, LEVELS, SCOPES = 300, (0.5, 0.9, 0.95, 0.999999), ("group", "global")
DECIDE = """async ([manifest, rows]) => {
  const {answer, argmax, largest} = await import("/decide.js");
  const number = value => value === null ? NaN : value, numbers = values => Float32Array.from(values, number);
  return rows.map(({row, asked}) => {
    const scores = Object.fromEntries(Object.entries(row.scores).map(([name, value]) => [name, number(value)]));
    return answer(manifest, {...row, scores, probabilities: numbers(row.probabilities),
                             quality: row.quality && numbers(row.quality)}, asked);
  });
}"""
NEAREST = """async ([vectors, classes, rows, k]) => {
  const {nearest} = await import("/decide.js"), known = {vectors: Float32Array.from(vectors), class_index: classes};
  return rows.map(row => nearest(known, Float32Array.from(row), k));
}"""


def described(manifest: Manifest, known: Exemplars | None = None) -> dict[str, Any]:
    """What the page is told of the bundle, through JSON as there."""
    said: dict[str, Any] = json.loads(json.dumps(folder.described(manifest, known, {}), allow_nan=False))["manifest"]
    return said


def drawn(manifest: Manifest) -> list[dict[str, Any]]:
    """Rows of the graph, float32, as it might give them: scores from the calibration's and exactly at thresholds."""
    rng = np.random.default_rng(7)
    classes, references = len(manifest.classes), manifest.calibration.references
    points = list(manifest.operating_points.values())
    edges = [value for point in points for value in (point.threshold, *point.group_thresholds.values())]
    edges += [value for reference in references.values() for value in reference.scores[:3]]
    rows = []
    for i in range(ROWS):
        logits = rng.normal(size=classes) * rng.choice([0.1, 1, 4])
        probabilities = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        scores = {name: float(np.float32(rng.choice(manifest.calibration.id_scores) + rng.normal() * (i % 3)))
                  for name in manifest.scores}  # fmt: skip
        if i % 4 == 0:
            scores[manifest.deciding_score] = float(rng.choice(edges))
        if i % 10 == 1:
            probabilities[:] = np.float32(1 / classes)  # all equal
        if i % 25 == 2:
            scores[str(rng.choice(list(scores)))] = math.nan
        if i % 50 == 3:
            probabilities[rng.integers(classes)] = np.nan
        quality = None
        if (told := manifest.reasons) is not None:
            scores[told.unknown_score] = told.unknown.at + told.unknown.scale * float(rng.normal() * 3)
            least = np.array([told.limits.brightness, told.limits.contrast, told.limits.sharpness])
            quality = (least * rng.choice([0.5, 1, 2], size=3, p=[0.05, 0.05, 0.9])).astype(np.float32)
        rows.append({"probabilities": probabilities, "scores": scores, "quality": quality,
                     "side_px": int(rng.choice([4, 400], p=[0.1, 0.9])), "level": LEVELS[i % len(LEVELS)],
                     "point": list(manifest.operating_points)[i % len(points)],
                     "scope": SCOPES[i // 2 % 2]})  # fmt: skip
    return rows


def nullable(value: Any) -> Any:
    """For JSON: what is not a number is null."""
    if isinstance(value, dict):
        return {key: nullable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [nullable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_page(page: Any, manifest: Manifest, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    given = [{
        "row": {"probabilities": row["probabilities"].tolist(), "scores": row["scores"], "width_px": row["side_px"],
                "height_px": 2 * row["side_px"],
                "quality": None if row["quality"] is None else row["quality"].tolist()},
        "asked": {"operating_point": row["point"], "thresholds": row["scope"], "set": row["level"]},
    } for row in rows]  # fmt: skip
    found: list[dict[str, Any]] = page.evaluate(DECIDE, [described(manifest), nullable(given)])
    return found


def by_service(manifest: Manifest, row: dict[str, Any]) -> dict[str, Any]:
    """The same answer by the service's own functions."""
    probabilities = row["probabilities"]
    verdict = decide_row(
        manifest, probabilities, row["scores"], row["point"], row["scope"], row["quality"], row["side_px"]
    )
    found = {
        "label": manifest.classes[verdict.class_index].name, "class_index": verdict.class_index,
        "decision": verdict.decision, "p_value": verdict.p_value, "threshold": verdict.threshold,
        "top": (-probabilities).argsort(kind="stable")[:5].tolist(),
    }  # fmt: skip
    if manifest.reasons:
        found |= {"reason": verdict.reason, "unfit": verdict.unfit}
    if manifest.sets:
        groups = [info.group for info in manifest.classes]
        found["set"] = class_set(manifest, PredictionSets(manifest.sets, groups), probabilities, row["level"])
    if manifest.taxonomy:
        node = Tree(manifest.taxonomy).deepest(probabilities) if verdict.asks_for_node else None
        told = taxonomy_node(manifest.taxonomy, node) if verdict.decision == "reject" else None
        found["taxonomy"] = told
    return nullable(found)  # type: ignore[no-any-return]


def compared(answer: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Of the page's answer what the service's functions say too."""
    more = {"threshold": answer["deciding_score"]["threshold"], "top": [e["class_index"] for e in answer["top_k"]]}
    return {name: (answer | more)[name] for name in wanted}


def same(page: Any, manifest: Manifest) -> list[dict[str, Any]]:
    rows = drawn(manifest)
    answers = by_page(page, manifest, rows)
    for row, answer in zip(rows, answers, strict=True):
        wanted = by_service(manifest, row)
        assert compared(answer, wanted) == wanted, row
    return answers


@pytest.mark.parametrize("name", BUNDLES)
def test_hundreds_of_rows(scripts: Any, name: str) -> None:
    answers = same(scripts, bundle.read(live.ROOT / name))
    assert {answer["decision"] for answer in answers} == {"accept", "reject"}
    if "reason" in answers[0]:
        assert {answer["reason"] for answer in answers} == {None, "unknown", "unsure", "unfit"}


def test_with_sets_taxonomy_and_thresholds_of_classes(scripts: Any, tmp_path: Path) -> None:
    """Names that an object of JavaScript has anyway: a class `constructor`, a group `toString`."""
    fields = json.loads(json.dumps(tiny.manifest(**tiny.said())).replace('"red"', '"constructor"'))
    fields = json.loads(json.dumps(fields).replace('"few"', '"toString"'))
    fields["operating_points"]["ood95"]["class_thresholds"] = {"green": -7.0}
    manifest = bundle.write(tmp_path / "tiny" / "1", fields | {"golden": []}, tiny.files())
    answers = same(scripts, manifest)
    told = [answer["taxonomy"]["node"] for answer in answers if answer["taxonomy"]]
    assert {"warm", None} == set(told)
    assert any(answer["deciding_score"]["threshold"] == -7.0 for answer in answers)


def test_neighbours(scripts: Any) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]  # of equals the first
    known = Exemplars(vectors, np.zeros(200, np.int32))
    rows = np.concatenate([vectors[[3, 9]], rng.normal(size=(30, 16)).astype(np.float32)])
    index, distance = known.nearest(rows, 4)
    found = scripts.evaluate(NEAREST, [vectors.ravel().tolist(), [0] * 200, rows.tolist(), 4])
    assert [[one["place"] for one in row] for row in found] == index.tolist()
    np.testing.assert_allclose([[one["distance"] for one in row] for row in found], distance, atol=1e-6)
    assert scripts.evaluate(NEAREST, [vectors.ravel().tolist(), [0] * 200, [[0.0] * 16], 4]) == [[]]  # no direction


def test_what_the_page_is_told_of_exemplars() -> None:
    place = live.ROOT / "models/groceries/1"
    manifest = bundle.read(place)
    known = exemplars.read(place, manifest)
    assert known is not None
    said = described(manifest, known)["exemplars"]
    assert (len(said["class_index"]), sum(said["pictured"])) == (
        manifest.exemplars.count,
        manifest.exemplars.thumbnails,
    )  # type: ignore[union-attr]
    assert said["ends"][-1] == sum(map(len, known.thumbnails))
