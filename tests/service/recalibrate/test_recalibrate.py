"""`tailguard recalibrate` on ledgers of a stream whose truth is known: right, or refused with the reason."""

import asyncio
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from service import __main__ as commands
from service.contract import bundle, outcomes
from service.contract.decision import decide
from service.contract.outcomes import Outcomes
from service.contract.points import OperatingPoint
from service.contract.reference import Reference
from service.ledger.writer import Ledger
from service.observe.metrics import Metrics
from service.recalibrate import measured, report, rows
from service.settings import Settings
from tests.service import tiny
from tests.service.ledger.test_ledger import entry

OLD = -5.3  # the largest of 99 even scores from -10 to -5.1 above which lie at most 5 of 100


UNSURE = "unsure"


class Image(NamedTuple):
    """One of the stream: the class it is given and its score; its true class, None for an outlier, or UNSURE."""

    predicted: int
    score: float
    truth: str | None


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose thresholds are those of its references, as exported ones are."""
    limits = dict.fromkeys(tiny.GROUPS, OLD)
    point = tiny.point(OLD) | {"level": 0.95, "group_thresholds": limits, "group_promises": dict.fromkeys(limits, 0.05)}
    assert Reference(**tiny.whole_reference()).threshold(0.95) == pytest.approx(OLD)
    exact = Reference(**tiny.whole_reference()).threshold(0.95)
    point |= {"threshold": exact, "group_thresholds": dict.fromkeys(tiny.GROUPS, exact)}
    points = {"id95": point, "ood95": tiny.point(-8.0)}
    turned_out = Outcomes(np.array([0, -1]), np.zeros(2, np.int64), np.array([-9.0, -3.0]), np.ones(2))
    files = tiny.files() | {"CARD.md": b"# tiny\n", outcomes.FILE: outcomes.encode(turned_out)}
    said = turned_out.described().model_dump()
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1"
    learned = tiny.manifest()["provenance"] | {"added": {"trained_keys": ["ab12"]}}
    return tiny.write(folder, operating_points=points, files=files, outcomes=said, provenance=learned)


def stream(count: int, *, shift: float = 0.0, outliers: int = 0, seed: int = 0) -> Iterator[Image]:
    """Known images with scores even between -10 and -5 moved by `shift`; outliers between -6 and -1."""
    draw = random.Random(seed)
    for i in range(count):
        yield Image(i % 3, draw.uniform(-10, -5) + shift, tiny.CLASSES[i % 3])
    for i in range(outliers):
        yield Image(i % 3, draw.uniform(-6, -1), None)


def serve(
    where: Path, folder: Path, images: Iterator[Image], *, sample: float, seen: Callable[[Image], bool] = lambda _: True
) -> None:
    """What a service with KEEP=rejected writes of these images, and a reviewer who labels all kept that are `seen`."""
    manifest, draw = bundle.read(folder), random.Random(1)
    ledger = Ledger.open(Settings(ledger=str(where)), Metrics(), lambda *_: None)
    assert ledger is not None
    labels: dict[str | None, list[int]] = {}
    number = 0
    for image in images:
        verdict = decide(manifest, image.predicted, image.score, "id95", "group")
        probability = 1.0 if verdict.decision == "reject" else sample
        if draw.random() >= probability:
            continue
        number += 1
        scores = {"energy": image.score, "msp": 0.5}
        ledger.record(entry(manifest, f"r{number}", verdict=verdict, scores=scores, keep_probability=probability))
        if seen(image):
            labels.setdefault(image.truth, []).append(number)
        if number % 2000 == 0:
            time.sleep(0.3)  # the queue holds so many
    for truth, chosen in labels.items():
        kind: Any = "outlier" if truth is None else "unsure" if truth == UNSURE else "class"
        label = truth if truth and kind == "class" else ""
        given = ledger.label(chosen, kind=kind, label=label, source="review", group_id=None, key=None)
        assert len(asyncio.run(given)) == len(chosen)
    ledger.close(30)


def recalibrate(capsys: pytest.CaptureFixture[str], old: Path, where: Path, out: Path, *given: str) -> tuple[int, str]:
    """(exit status, what was printed)."""
    capsys.readouterr()
    status = commands.main(["recalibrate", "--bundle", str(old), "--ledger", str(where), "--out", str(out), *given])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def refused(folder: Path, images: Iterator[Image]) -> dict[str, float]:
    """The share of the known images of a stream that a bundle refuses, by group."""
    manifest = bundle.read(folder)
    flags: dict[str, list[bool]] = {}
    for image in images:
        if image.truth is not None:
            verdict = decide(manifest, image.predicted, image.score, "id95", "group")
            flags.setdefault(manifest.classes[image.predicted].group, []).append(verdict.decision == "reject")
    return {group: float(np.mean(each)) for group, each in flags.items()}


def test_a_stream_that_has_moved_is_refused_as_promised_again(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, out = tmp_path / "ledger.sqlite3", tmp_path / "models" / "tiny" / "2"
    serve(where, old, stream(12_000, shift=0.4, outliers=600), sample=0.1)
    status, printed = recalibrate(capsys, old, where, out)
    assert status == 1
    assert "nothing was written: refusal moves by more than 5 points: id95 all 1" in printed
    assert not out.exists()
    status, printed = recalibrate(capsys, old, where, out, "--yes")
    assert status == 0, printed
    before, after = (refused(folder, stream(30_000, shift=0.4, seed=7)) for folder in (old, out))
    for group in tiny.GROUPS:
        assert before[group] == pytest.approx(0.14, abs=0.02)
        assert after[group] == pytest.approx(0.05, abs=0.012)  # unweighted, half of the rows are refused ones
    old_manifest, manifest = bundle.read(old), bundle.read(out)
    found = outcomes.read(out, manifest)  # of the reviewed images, which costs can be weighed by
    assert found is not None
    assert found.known.sum() == manifest.calibration.in_distribution_images
    assert (~found.known).sum() == manifest.calibration.outlier_images
    flags = found.score > manifest.operating_points["id95"].threshold
    cost = manifest.operating_points["id95"].global_cost.calibration
    assert np.average(flags[found.known], weights=found.weight[found.known]) == pytest.approx(
        cost.id_rejected, abs=1e-3
    )
    assert manifest.sha256 == old_manifest.sha256
    assert manifest.provenance.parent is not None
    assert manifest.provenance.parent.version == "1"
    assert manifest.calibration.temperature == old_manifest.calibration.temperature
    assert manifest.calibration.class_shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert manifest.provenance.added is not None
    assert manifest.provenance.added["trained_keys"] == ["ab12"]  # they tell nothing of this one either
    added = manifest.provenance.added["recalibrated"]
    assert added["outliers"] == sum(s["reviewed"] for s in added["rows"]) - added["known_images"]
    assert "## Recalibrated" in (out / "CARD.md").read_text()
    assert "temperature: as it was" in printed
    # 95% of the outliers of the stream lie above ood95: scores even from -6 to -1
    assert manifest.operating_points["ood95"].threshold == pytest.approx(-5.75, abs=0.25)
    # its rows are of this very graph too: it can be recalibrated in turn
    assert recalibrate(capsys, out, where, tmp_path / "models" / "tiny" / "3", "--yes")[0] == 0


def test_what_was_only_kept_because_it_was_refused_says_nothing(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, out = tmp_path / "ledger.sqlite3", tmp_path / "tiny" / "2"
    serve(where, old, stream(1500), sample=0.0)
    status, printed = recalibrate(capsys, old, where, out, "--yes")
    assert status == 1
    assert "every kept row was rejected" in printed
    assert "TAILGUARD_KEEP_SAMPLE" in printed
    assert not out.exists()


def test_too_few_and_not_reviewed_are_named(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "few.sqlite3"
    few = (image for image in stream(900) if image.predicted < 2 or image.score < -9.95)
    serve(where, old, few, sample=0.5)
    status, printed = recalibrate(capsys, old, where, tmp_path / "tiny" / "2")
    assert status == 1
    assert "group few has" in printed
    assert "at least 19 of the same weight are needed in each for id95" in printed
    assert "group many" not in printed
    where = tmp_path / "unseen.sqlite3"
    serve(where, old, stream(900), sample=0.5, seen=lambda image: image.predicted != 1)
    status, printed = recalibrate(capsys, old, where, tmp_path / "tiny" / "2")
    assert status == 1
    assert "images that were accepted in group medium has been reviewed" in printed


def test_without_what_was_refused_the_refused_share_would_be_refused_again(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reviewer of the sample alone: of a stream that has not moved 5% more would be refused, and 5% promised."""
    where, out = tmp_path / "sample.sqlite3", tmp_path / "tiny" / "2"
    serve(where, old, stream(6000), sample=0.3, seen=lambda image: image.score <= OLD)
    status, printed = recalibrate(capsys, old, where, out, "--yes")
    assert status == 1, refused(out, stream(20_000, seed=9))
    assert "images that were rejected in group few, many, medium has been reviewed" in printed
    assert not out.exists()
    where = tmp_path / "unsure.sqlite3"  # looked at, without an answer: more cannot be asked for
    beyond = (Image(i % 3, -3.0, UNSURE) for i in range(30))
    serve(where, old, iter([*(i for i in stream(3000) if i.score <= OLD), *beyond]), sample=0.5)
    assert "images that were rejected" not in recalibrate(capsys, old, where, out, "--yes")[1]


def test_part_of_what_was_kept_stands_for_all_of_it(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, out, draw = tmp_path / "part.sqlite3", tmp_path / "tiny" / "2", random.Random(5)
    lazy = {"accept": 1.0, "reject": 0.3}  # a reviewer who skips most of what was refused
    manifest = bundle.read(old)

    def seen(image: Image) -> bool:
        return draw.random() < lazy[decide(manifest, image.predicted, image.score, "id95", "group").decision]

    serve(where, old, stream(8000, shift=0.4), sample=0.2, seen=seen)
    status, printed = recalibrate(capsys, old, where, out, "--yes")
    assert status == 0, printed
    after = refused(out, stream(20_000, shift=0.4, seed=9))
    assert np.mean(list(after.values())) == pytest.approx(0.05, abs=0.012)


def test_what_is_no_ledger_or_there_already(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny" / "2"
    assert "is no file" in recalibrate(capsys, old, tmp_path / "none.sqlite3", out)[1]
    (tmp_path / "text").write_text("no database at all")
    assert f"--ledger={tmp_path / 'text'} is no SQLite file" in recalibrate(capsys, old, tmp_path / "text", out)[1]
    assert "exists already" in recalibrate(capsys, old, tmp_path / "none.sqlite3", old)[1]
    where = tmp_path / "empty.sqlite3"
    serve(where, old, iter(()), sample=1.0)
    assert "holds no kept row of this graph" in recalibrate(capsys, old, where, out)[1]


def test_weighted_quantiles_by_hand() -> None:
    scores, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])
    # sorted 1, 2, 3 with weights 1, 2, 1: middles .5, 2, 3.5 of 4, so 2 is the median
    assert measured.weighted_quantiles(scores, weights, [0, 0.5, 1]) == [1.0, 2.0, 3.0]
    assert measured.weighted_quantiles(np.array([4.0]), np.array([9.0]), [0, 0.5]) == [4.0, 4.0]
    alike = measured.weighted_quantiles(np.arange(5.0), np.ones(5), [0.25, 0.75])
    assert alike == pytest.approx(np.quantile(np.arange(5.0), [0.25, 0.75]))


@pytest.mark.parametrize("weight", [3.0, 162.84, 9.153731263302744, 54.68755603901019, 127.7553757769694])
def test_19_images_of_one_weight_are_enough_whatever_others_weigh(old: Path, weight: float) -> None:
    manifest = bundle.read(old)
    one_group = [rows.Row("red", "red", {"energy": -9 + i / 99}, weight) for i in range(19)]
    others = [rows.Row(c, c, {"energy": -9 + i / 99}, 1.0) for c in ("green", "blue") for i in range(50)]
    accepted = Counter({rows.Stratum("many", "accept", 1.0): 119})
    found = rows.Rows([*one_group, *others], accepted, accepted, 0)
    assert measured.sample(manifest, found).groups.names
    with pytest.raises(measured.CannotRecalibrate, match="has 18 reviewed in-distribution images"):
        measured.sample(manifest, rows.Rows([*one_group[1:], *others], found.kept, found.reviewed, 0))


def test_a_threshold_of_one_class_counts_in_what_a_point_is_said_to_refuse(old: Path) -> None:
    """The point that costs had chosen was measured, and compared, as if it were not there."""
    dear = OperatingPoint(**tiny.point(-1.0) | {"class_thresholds": {"red": -100.0}})
    manifest = bundle.read(old)
    manifest = manifest.model_copy(update={"operating_points": manifest.operating_points | {"costs": dear}})
    known = [rows.Row(c, c, {"energy": -9 + i / 99}, 1.0) for c in tiny.CLASSES for i in range(50)]
    strangers = [rows.Row("red", None, {"energy": -9.0}, 1.0), rows.Row("blue", None, {"energy": -9.0}, 1.0)]
    accepted = Counter({rows.Stratum(g, "accept", 1.0): 51 for g in tiny.GROUPS})
    found = measured.sample(manifest, rows.Rows([*known, *strangers], accepted, accepted, 0))
    points, _ = measured.measured(manifest, found)
    for scope, refused_, caught in (("group", 1 / 3, 0.5), ("global", 0.0, 0.0)):
        cost = points["costs"][f"{scope}_cost"]["calibration"]
        assert (cost["id_rejected"], cost["outliers_caught"]) == (pytest.approx(refused_), caught)
    assert points["costs"]["group_cost"]["calibration"]["id_rejected_by_predicted_group"]["many"] == 1.0
    compared = {(row.point, row.where): row for row in report.compare(manifest, points, found)}
    assert (compared["costs", "many"].old, compared["costs", "many"].new) == (1.0, 1.0)


def test_a_row_stands_for_those_that_were_kept_and_not_reviewed(old: Path, tmp_path: Path) -> None:
    where = tmp_path / "ledger.sqlite3"
    serve(where, old, iter([Image(0, -9.0, "red")] * 4), sample=1.0, seen=lambda _: False)
    assert rows.read(str(where), bundle.read(old)).rows == []
    assert json.loads(json.dumps(rows.Stratum("many", "accept", 1.0)._asdict()))["group"] == "many"


def test_what_was_kept_at_a_rate_of_before_is_spoken_for(old: Path) -> None:
    """After a change of the rate nothing could be recalibrated while a row of before was there: its image was gone."""
    kept = Counter({
        rows.Stratum("many", "accept", 0.1): 10, rows.Stratum("many", "accept", 0.5): 100,
        rows.Stratum("many", "reject", 1.0): 7, rows.Stratum("few", "accept", 0.5): 40,
    })  # fmt: skip
    reviewed = Counter({s: n // 2 for s, n in kept.items() if s.keep_probability != 0.1})
    reviewed[rows.Stratum("many", "reject", 1.0)] = 7
    found = rows.Rows([], kept, reviewed, 0, reviewed)
    measured.require_sample(found)
    assert found.stands_for(rows.Stratum("many", "accept", 0.5)) == 6.0  # 100 of before and 200 of now, by 50
    assert found.stands_for(rows.Stratum("many", "reject", 1.0)) == 1.0
    assert found.stands_for(rows.Stratum("few", "accept", 0.5)) == 4.0
    del reviewed[rows.Stratum("many", "accept", 0.5)]
    with pytest.raises(measured.CannotRecalibrate, match="none of the 110 kept images that were accepted in group"):
        measured.require_sample(found)


def test_an_image_that_was_sent_again_is_one_image(old: Path, tmp_path: Path) -> None:
    """A client that tries again, or a person who does, made the same image count as often as it was sent."""
    where, manifest = tmp_path / "ledger.sqlite3", bundle.read(old)
    images = [Image(0, -9.0, "red"), *([Image(0, -8.0, "red")] * 5), Image(0, -7.0, "red"), Image(0, -6.5, UNSURE)]
    serve(where, old, iter(images), sample=1.0)
    (stratum,) = rows.read(str(where), manifest).kept
    with closing(sqlite3.connect(where)) as database, database:
        database.execute("UPDATE decisions SET image_key = 'a' WHERE row BETWEEN 2 AND 6")
        database.execute("UPDATE decisions SET image_key = 'b' WHERE row = 1")
    found = rows.read(str(where), manifest)
    assert (found.kept[stratum], found.reviewed[stratum], found.labelled[stratum]) == (4, 3, 4)
    assert [(row.scores["energy"], row.weight) for row in found.rows] == [
        (score, pytest.approx(4 / 3)) for score in (-9.0, -8.0, -7.0)
    ]
    ledger = Ledger.open(Settings(ledger=str(where)), Metrics(), lambda *_: None)
    assert ledger is not None
    asyncio.run(ledger.label([3], kind="outlier", label="", source="review", group_id=None, key=None))
    ledger.close(30)
    assert [row.truth for row in rows.read(str(where), manifest).rows] == ["red", None, "red"]  # what was said last
