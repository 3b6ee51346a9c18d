"""service/ledger/audit.py: by hand, against simulated streams whose truth is known, and from both databases."""

import random
from collections import Counter
from typing import Any

import pytest

from service.contract import bundle
from service.contract.decision import Verdict
from service.contract.intervals import wilson
from service.ledger import work
from service.ledger.audit import Audit, AuditKey, audit
from tests.service.ledger.test_ledger import Kept, entry, until

RED = AuditKey(0.1, "id95", "group", True, "red", "accept", "class", "red")
UNSEEN: dict[str, Any] = {"kind": None, "truth": ""}


def told(manifest: bundle.Manifest, *counted: tuple[AuditKey, int]) -> Audit:
    return audit(Counter(dict(counted)), manifest, "id95", "group")


def test_by_hand(manifest: bundle.Manifest) -> None:
    """Of 100 accepted images 10 were looked at, of 10 refused ones all."""
    refused = RED._replace(decision="reject")
    found = told(
        manifest,
        (RED, 8), (RED._replace(truth="blue"), 2), (RED._replace(**UNSEEN), 88), (RED._replace(kind="unsure"), 2),
        (refused, 4), (refused._replace(kind="outlier", truth="outlier"), 5),
        (refused._replace(kind="new", truth="violet"), 1),
    )  # fmt: skip
    assert (found.sampled, found.labelled, found.unsure) == (110, 20, 2)
    # accepted ones stand for 10 each among 110 in the sample, refused ones for 1
    assert found.outlier_share.share == pytest.approx(6 / 110)
    assert found.accuracy.share == pytest.approx((80 + 4) / (100 + 4))
    assert found.known_rejected.share == pytest.approx(4 / 104)
    assert found.accuracy_by_group["many"].share == 1
    assert found.accuracy_by_group["few"].share == 0  # the two blue ones, taken for red
    assert found.known_rejected_by_group["many"].share == pytest.approx(4 / 84)
    assert found.accuracy_by_group["medium"].share is None
    assert (found.outliers_rejected.share, found.outliers_rejected.images) == (1, 6)
    effective = 104**2 / (10 * 10**2 + 4)
    expected = wilson(84 / 104 * effective, effective)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(expected)


def test_with_one_rate_and_every_label_the_interval_is_wilsons(manifest: bundle.Manifest) -> None:
    found = told(manifest, (RED, 30), (RED._replace(label="blue"), 10)).accuracy
    assert (found.images, found.share) == (40, 0.75)
    assert (found.low, found.high) == pytest.approx(wilson(30, 40))


def test_rows_of_another_rate_keep_their_weight(manifest: bundle.Manifest) -> None:
    """Ten images at a tenth stand for as many as a hundred at a rate of one."""
    found = told(manifest, (RED, 10), (RED._replace(rate=1.0, label="blue"), 100))
    assert found.accuracy.share == pytest.approx(0.5)


def test_what_cannot_be_said_is_not(manifest: bundle.Manifest) -> None:
    nothing = told(manifest)
    assert (nothing.sampled, nothing.accuracy.share) == (0, None)
    unlooked = told(manifest, (RED, 50), (RED._replace(decision="reject", **UNSEEN), 3))
    assert (unlooked.accuracy.share, unlooked.accuracy.images) == (None, 50)
    other = told(manifest, (RED._replace(operating_point="ood95"), 50), (RED._replace(by_deployment=False), 50))
    assert (other.accuracy.share, other.known_rejected.share) == (1, None)


def test_labels_of_another_point_say_nothing_of_what_this_one_refuses(manifest: bundle.Manifest) -> None:
    """After a change of the point the refused images are looked at first: all of those looked at are refused ones."""
    before = RED._replace(operating_point="ood95")
    refused = (RED._replace(decision="reject"), 5)
    unlooked = told(manifest, (before, 50), (RED._replace(**UNSEEN), 95), refused)
    assert (unlooked.known_rejected.images, unlooked.known_rejected.share) == (5, None)
    assert unlooked.known_rejected_by_group["many"].share is None
    looked = told(manifest, (before, 50), (RED._replace(**UNSEEN), 90), (RED, 5), refused)
    assert looked.known_rejected.share == pytest.approx(0.05)


def test_unbiased_and_covering_on_simulated_streams(manifest: bundle.Manifest) -> None:
    """Reviewers label all refused images of the sample and a third of the accepted ones."""
    draw, inside, sums, runs = random.Random(1), 0, 0.0, 300
    truth = 0.1  # of the stream are outliers; seven tenths of these are refused, a twentieth of the others
    for _ in range(runs):
        counted: Counter[AuditKey] = Counter()
        for _ in range(600):
            outlier = draw.random() < truth
            decision: Any = "reject" if draw.random() < (0.7 if outlier else 0.05) else "accept"
            key = RED._replace(decision=decision, **UNSEEN)
            if decision == "reject" or draw.random() < 1 / 3:
                key = key._replace(kind="outlier", truth="outlier") if outlier else RED._replace(decision=decision)
            counted[key] += 1
        share = audit(counted, manifest, "id95", "group").outlier_share
        assert share.share is not None
        assert share.low is not None
        assert share.high is not None
        sums += share.share
        inside += share.low <= truth <= share.high
    assert sums / runs == pytest.approx(truth, abs=0.004)  # the plain share of labelled ones would be .19
    assert 0.92 <= inside / runs <= 1.0


def test_from_the_ledger(where: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TICK_S", 0.05)
    sampled: dict[str, Any] = {"sample_rate": 0.5, "keep_probability": 0.5}
    reject = Verdict(0, -5.0, "reject", -5.5, "id95", "group", 0.01)
    with Kept(where) as kept:
        for i in range(6):
            changes = sampled if i < 5 else {"keep_probability": 1.0}
            verdict = reject if i >= 4 else Verdict(0, -7.0, "accept", -5.5, "id95", "group", 0.5)
            kept.ledger.record(entry(manifest, "a", i, verdict=verdict)._replace(**changes))
        kept.mark(1, 2, kind="class", label="red")
        kept.mark(3, kind="class", label="blue")
        kept.mark(4, kind="unsure")
        kept.mark(5, 6, kind="new", label="violet")  # the last of them is not in the sample

        def audited() -> Audit:
            return kept.ledger.audit(manifest, "id95", "group")

        until(lambda: audited().labelled == 4)
        found = audited()
        assert (found.sampled, found.unsure) == (5, 1)
        assert found.accuracy.share == pytest.approx(2 / 3)
        assert found.outlier_share.share == pytest.approx(1 / 5)  # four accepted images, three of them known, and one
        kept.mark(5, kind="withdrawn")
        until(lambda: audited().labelled == 3)
        assert audited().outlier_share.share is None
