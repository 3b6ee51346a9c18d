"""service/contract/reasons.py against values worked out by hand."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import web
from service.contract import bundle
from service.contract.decision import decide_row
from service.contract.reasons import REASONS, Limits, Part, Shares, doubt
from service.inference.engine import Engine, EngineError
from tests.service import refusing, tiny
from tests.service.refusing import BLACK, EITHER, GREY, RED

FIT = np.array([0.5, 0.2, 0.01], np.float32)


def test_every_reason_has_its_share_in_a_manifest_and_its_words_on_the_pages() -> None:
    assert set(Shares.model_fields) - {"images"} == set(REASONS)
    pages = Path(web.__file__).parent / "pages"
    words = re.search(r"const REASONS = \{(.*)\};", (pages / "review.html").read_text())
    assert words is not None
    assert re.findall(r"(\w+): \"", words[1]) == list(REASONS)
    assert set(re.findall(r'answer\.reason === "(\w+)"\)', (pages / "index.html").read_text())) == set(REASONS)


def probabilities(best: float) -> np.ndarray:
    return np.array([best, (1 - best) / 2, (1 - best) / 2], np.float32)


def row(energy: float, best: float) -> tuple[np.ndarray, dict[str, float]]:
    given = probabilities(best)
    return given, {"energy": energy, "msp": 1 - best, EITHER: refusing.parts({"energy": energy}, float(given.max()))}


@pytest.mark.parametrize(
    ("energy", "best", "decision", "reason"),
    [
        (-9.0, 0.99, "accept", None),
        (-4.0, 0.99, "reject", "unknown"),  # its part is 1.5, the doubt's log(.01/.99) = -4.6
        (-9.0, 0.40, "reject", "unsure"),  # log(.6/.4) = 0.405
        (-4.0, 0.40, "reject", "unknown"),  # both: what is unknown has no class to be unsure of
        (-5.4, 0.34, "reject", "unknown"),  # 0.1, while the doubt is log(.66/.34) = 0.66
        (math.nan, 0.99, "reject", "unknown"),
        (math.nan, math.nan, "reject", "unknown"),
        (math.inf, 0.4, "reject", "unknown"),
    ],
)
def test_the_reason_of_a_refusal(tmp_path: Path, energy: float, best: float, decision: str, reason: str | None) -> None:
    manifest = bundle.read(refusing.write(tmp_path / "tiny"))
    scores = {"energy": energy, "msp": 0.0, EITHER: math.nan}
    if not math.isnan(energy):
        scores = row(energy, best)[1]
    verdict = decide_row(manifest, probabilities(best), scores, "id95", "global", FIT, 300)
    assert (verdict.decision, verdict.reason, verdict.unfit) == (decision, reason, None)


@pytest.mark.parametrize(
    ("energy", "best", "reason"),
    [
        (-9.0, 0.99, None),  # parts -3.5 and -4.6
        (-7.0, 0.99, "unsure"),  # -1.5 is beyond -2.5, and what was learnt has up to 0
        (-9.0, 0.60, "unsure"),  # log(.4/.6) = -0.405
        (-6.0, 0.40, "unsure"),  # -0.5 and 0.405: the doubt alone is beyond 0
        (-4.0, 0.99, "unknown"),  # 1.5
        (-4.0, 0.40, "unknown"),
        (math.nan, 0.99, "unknown"),
    ],
)
def test_what_only_a_stricter_point_refuses_is_unsure(
    tmp_path: Path, energy: float, best: float, reason: str | None
) -> None:
    manifest = bundle.read(refusing.write(tmp_path / "tiny"))
    given, scores = (
        row(energy, best) if not math.isnan(energy) else (probabilities(best), {"energy": energy, EITHER: energy})
    )
    verdict = decide_row(manifest, given, scores, "ood95", "global", FIT, 300)
    assert (verdict.threshold, verdict.reason) == (-2.5, reason)
    asked = decide_row(manifest, given, scores, "id95", "global", FIT, 300).reason
    assert asked in (None, reason)  # what the default refuses too has the same name there


def test_a_rounding_of_the_graph_does_not_turn_unknown_into_unsure(tmp_path: Path) -> None:
    manifest = bundle.read(refusing.write(tmp_path / "tiny"))
    given, scores = row(refusing.AT, 0.99)  # its part is exactly the threshold here, and just above it in float32
    verdict = decide_row(manifest, given, scores | {EITHER: 1e-7}, "id95", "global", FIT, 300)
    assert (verdict.decision, verdict.reason) == ("reject", "unknown")


@pytest.mark.parametrize(
    ("quality", "side", "what"),
    [
        ((0.5, 0.2, 0.01), 300, None), ((0.5, 0.2, 0.01), 7, "small"), ((0.1, 0.2, 0.01), 300, "dark"),
        ((0.5, 0.01, 0.01), 300, "blank"), ((0.5, 0.2, 0.0001), 300, "blurred"), ((0, 0, 0), 300, "dark"),
        ((0.2, 0.1, 0.001), 8, None),
    ],
)  # fmt: skip
def test_limits_by_hand(quality: tuple[float, ...], side: int, what: str | None) -> None:
    least = Limits(brightness=0.2, contrast=0.1, sharpness=0.001, side_px=8, images=9, chosen="by hand")
    assert least.broken(np.array(quality), side) == what


def test_an_unfit_image_is_refused_whatever_it_scores(tmp_path: Path) -> None:
    manifest = bundle.read(refusing.write(tmp_path / "tiny", {"brightness": 0.2}))
    accepted, scores = row(-9.0, 0.99)
    for point in ("id95", "ood95"):
        verdict = decide_row(manifest, accepted, scores, point, "group", np.array([0.1, 0.2, 0.1], np.float32), 300)
        assert (verdict.decision, verdict.reason, verdict.unfit) == ("reject", "unfit", "dark")
        assert verdict.p_value == 1 / 100  # as if more outlying than all, which is how calibration counts it
        assert verdict.score == scores[EITHER]


def test_a_bundle_without_reasons_gives_none(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    verdict = decide_row(manifest, probabilities(0.99), {"energy": 9.0, "msp": 0.1}, "id95", "group", FIT, 1)
    assert (verdict.decision, verdict.reason, verdict.unfit) == ("reject", None, None)


def test_parts_and_doubt_by_hand() -> None:
    assert Part(at=2.0, scale=4.0, share=0.1).value(10.0) == 2.0
    assert doubt(0.5) == 0.0
    assert doubt(0.8) == pytest.approx(-math.log(4))
    assert math.isfinite(doubt(1.0))
    assert math.isfinite(doubt(0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unknown_score": "vim"}, "'vim' is none of the other scores"),
        ({"unknown_score": EITHER}, "is none of the other scores"),
        ({"unknown": {"at": -5.5, "scale": 2.0, "share": 0.03}}, "deciding score"),
        ({"unknown": {"at": -5.5, "scale": 0.0, "share": 0.03}}, "greater than 0"),
    ],
)
def test_reasons_that_are_not_those_of_the_graph_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(bundle.BundleError, match=message):
        refusing.write(tmp_path / "tiny", reasons=refusing.reasons() | changes)


def test_the_engine_measures_the_pixels_and_names_the_reason(tmp_path: Path) -> None:
    folder = refusing.write(tmp_path / "tiny")
    manifest = bundle.read(folder)
    engine = Engine(folder, manifest)
    batch = np.stack([np.full((tiny.SIDE, tiny.SIDE, 3), colour, np.uint8) for colour in (RED, GREY, BLACK)])
    out = engine.run(batch)
    assert out.quality is not None
    np.testing.assert_allclose(out.quality[:, 0], [280 / 765, 128 / 255, 0], rtol=1e-5)
    verdicts = [
        decide_row(
            manifest, out.probabilities[i], {k: float(v[i]) for k, v in out.scores.items()}, "id95", "group",
            out.quality[i], 300,
        )
        for i in range(3)
    ]  # fmt: skip
    assert [v.reason for v in verdicts] == [None, "unsure", "unknown"]
    engine.close()


def test_a_graph_that_measures_no_pixels_is_refused(tmp_path: Path) -> None:
    outputs = ("probabilities", "energy", "msp", EITHER)
    folder = refusing.write(tmp_path / "tiny", files=tiny.files() | {"model.onnx": refusing.graph(outputs)})
    with pytest.raises(EngineError, match="needs quality"):
        Engine(folder, bundle.read(folder))
