"""service/ledger/labels.py on both databases: labels of several rows, new classes, not sure, taken back."""

import time
from concurrent.futures import Future

import pytest

from service.contract import bundle
from service.errors import InvalidParameter
from service.ledger.database import connect
from service.ledger.rows import Labels, TallyKey, Truth
from service.ledger.tables import Tables
from tests.service.ledger.test_ledger import Kept, entry, read

RED = TallyKey("id95", "group", True, "red", "accept", "")
OUTLIER = RED._replace(truth="outlier")


def tallied(kept: Kept, manifest: bundle.Manifest) -> dict[TallyKey, int]:
    tally = kept.ledger.tally(manifest)
    assert tally is not None
    return dict(+tally.images)


def test_a_group_gets_one_label_and_is_corrected(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        for i in range(4):
            kept.ledger.record(entry(manifest, "a", i))
        records = kept.mark(1, 2, 3, kind="new", label="violet", group_id="g1", key="eva")
        assert [(r.row, r.kind, r.truth, r.outcome) for r in records] == [
            (row, "new", "outlier", "outlier") for row in (1, 2, 3)
        ]
        assert tallied(kept, manifest) == {RED: 4, OUTLIER: 3}
        assert [r.truth for r in kept.mark(2, kind="class", label="red")] == ["red"]
        assert tallied(kept, manifest) == {RED: 4, OUTLIER: 2, RED._replace(truth="red"): 1}
        assert kept.label("a", 1, "red").outcome == "correct"  # the same said as feedback: nothing is appended
        assert [r.outcome for r in kept.mark(1, kind="unsure")] == [None]
        assert [r.truth for r in kept.mark(2, 3, kind="withdrawn")] == ["", ""]
        assert kept.mark(2, 3, 4, kind="withdrawn")[0].kind == "withdrawn"  # there is nothing more to take back
        assert tallied(kept, manifest) == {RED: 4}
        assert kept.labelled == [
            *[("outlier", "outlier", 1)] * 3,
            ("outlier", "outlier", -1), ("red", "correct", 1),
            ("outlier", "outlier", -1), ("red", "correct", -1), ("outlier", "outlier", -1),
        ]  # fmt: skip
    assert read(where, "SELECT decision_row, kind, label, source, group_id, api_key FROM feedback ORDER BY row") == [
        *[(row, "new", "violet", "review", "g1", "eva") for row in (1, 2, 3)],
        (2, "class", "red", "review", None, None),
        (1, "unsure", "", "review", None, None),
        *[(row, "withdrawn", "", "review", None, None) for row in (2, 3)],
    ]


def test_another_name_for_a_new_class_is_history_but_counts_the_same(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        kept.mark(1, kind="new", label="violet")
        kept.mark(1, kind="new", label="purple")
        assert kept.mark(1, kind="outlier", label="not read")[0].kind == "outlier"
        assert tallied(kept, manifest) == {RED: 1, OUTLIER: 1}
        assert kept.labelled == [("outlier", "outlier", 1)]
    assert read(where, "SELECT kind, label FROM feedback ORDER BY row") == [
        ("new", "violet"), ("new", "purple"), ("outlier", "outlier")
    ]  # fmt: skip


def test_a_new_class_that_the_model_has_is_a_class(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        assert [(r.kind, r.truth, r.outcome) for r in kept.mark(1, kind="new", label="blue")] == [
            ("class", "blue", "wrong")
        ]


def test_rows_that_are_gone_are_left_out_and_a_bad_name_labels_none(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        assert [r.row for r in kept.mark(7, 1, 1, kind="unsure")] == [1]
        with pytest.raises(InvalidParameter, match="'violet' is no class of tiny version 1"):
            kept.mark(1, kind="class", label="violet")
        for name in ("", "outlier"):
            with pytest.raises(InvalidParameter, match="is no name of a class"):
                kept.mark(1, kind="new", label=name)
    assert read(where, "SELECT kind FROM feedback") == [("unsure",)]


def test_a_label_of_another_process_can_be_taken_back(where: str, manifest: bundle.Manifest) -> None:
    """`review import`, or a replica: this process has not counted it yet, and no count may fall below nothing."""
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        kept.mark(1, kind="unsure")
        other = connect(where)
        Tables(other).write([Labels(time.time(), [1], Truth("class", "blue"), "import", None, "eva", Future())])
        other.close()
        kept.mark(1, kind="class", label="red")
        tally = kept.ledger.tally(manifest)
        assert tally is not None
        assert tally.images == {RED: 1, RED._replace(truth="blue"): 0, RED._replace(truth="red"): 1}


def test_a_label_that_came_in_between_stays_unless_it_is_to_be_replaced(where: str, manifest: bundle.Manifest) -> None:
    """Whoever looked before may write after another replica: what counts is known in the transaction alone."""
    with Kept(where) as kept:
        for i in range(2):
            kept.ledger.record(entry(manifest, "a", i))
        kept.mark(1, kind="class", label="red", key="ann")
        kept.mark(2, kind="unsure")
        kept.mark(2, kind="withdrawn")
        assert [r.row for r in kept.mark(1, 2, kind="new", label="violet", key="ben", again=False)] == [2]
        assert [r.row for r in kept.mark(1, 2, kind="outlier", again=True)] == [1, 2]
        assert kept.mark(1, 2, kind="unsure", seen={1: 1, 2: 3}) == []  # outlier has come since
        assert [r.row for r in kept.mark(1, 2, kind="unsure", seen={1: 5, 2: 4})] == [1]
    labels = read(where, "SELECT label FROM feedback WHERE decision_row = 1 ORDER BY row")
    assert labels == [("red",), ("outlier",), ("",)]
