"""service/ledger/reading.py on both databases and in memory: what was kept comes back, and the writer does not wait."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import bundle
from service.ledger import schema
from service.ledger.database import MEMORY, connect
from service.ledger.reading import Label, Reader
from service.ledger.schema import SchemaError
from tests.service.ledger.test_ledger import Kept, entry
from tests.service.ledger.test_schema import write_version_1

VECTOR = np.array([0.6, -0.8, 0.0], np.float32)


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return MEMORY
    return str(request.getfixturevalue("tmp_path") / "ledger") if request.param == "sqlite" else _new(request)


def _new(request: pytest.FixtureRequest) -> str:
    from tests.service import postgres

    return postgres.new_database(request.getfixturevalue("server"), f"reading_{abs(hash(request.node.name))}")


def test_kept_rows_come_back_with_what_was_kept(place: str, manifest: bundle.Manifest) -> None:
    what: dict[str, Any] = {
        "embedding": VECTOR.astype("<f2").tobytes(),
        "keep_probability": 0.25,
        "sample_rate": 0.25,
    }
    with Kept(place) as kept:
        for i in range(6):
            kept.ledger.record(entry(manifest, "a", i, key="ci")._replace(**(what if i % 2 else {})))
        kept.mark(2, kind="new", label="violet", group_id="g", key="eva")
        kept.mark(3, kind="class", label="red")
        kept.mark(4, kind="outlier")
        kept.mark(4, kind="withdrawn")
        reader = kept.ledger.reader()
        rows = reader.kept()
        assert [row.row for row in rows] == [2, 4, 6]
        assert [row.row for row in reader.kept(2, 1)] == [4]
        first = rows[0]
        assert (first.request_id, first.position, first.predicted, first.group) == ("a", 1, "red", "many")
        assert (first.model.sha256, first.by_deployment, first.sampled) == (manifest.sha256, True, True)
        assert (first.score, first.threshold, first.p_value, first.scores["msp"]) == (-7.0, -5.5, 0.5, 0.25)
        assert (first.keep_probability, first.api_key, first.image_key) == (0.25, "ci", None)
        assert first.embedding is not None
        assert first.embedding.dtype == np.float32
        np.testing.assert_allclose(first.embedding, VECTOR, atol=1e-3)
        assert first.label is not None
        assert first.label._replace(time=0.0, number=0) == Label("new", "violet", "review", "g", "eva", 0.0, 0)
        assert rows[1].label is None
        assert [(row.row, row.label and row.label.label) for row in reader.labelled()] == [(2, "violet"), (3, "red")]
        assert [row.row for row in reader.labelled(2)] == [3]
        found = reader.of_request("a", 1), reader.row(2)
        assert [row and row.row for row in found] == [2, 2]
        assert reader.of_request("a", 9) is None
        assert reader.row(99) is None
        assert reader.image("0" * 64) is None
        reader.close()


def test_labelled_rows_are_read_in_pages(tmp_path: Path, manifest: bundle.Manifest) -> None:
    where = str(tmp_path / "ledger")
    with Kept(where) as kept:
        for i in range(2500):
            kept.ledger.record(entry(manifest, "a", i))
        kept.mark(*range(1, 2501), kind="unsure")
        reader = kept.ledger.reader()
        assert [row.row for row in reader.labelled()] == list(range(1, 2501))
        reader.close()


def test_a_reader_neither_changes_nor_delays(place: str, manifest: bundle.Manifest) -> None:
    with Kept(place) as kept:
        kept.ledger.record(entry(manifest, "a", keep_probability=1.0))
        kept.mark(1, kind="unsure")
        reader = kept.ledger.reader()
        with pytest.raises(Exception, match=r"(?i)read.?only|locked|query_only"):
            reader.fetch("DELETE FROM decisions")
        reader.fetch("SELECT * FROM decisions")
        kept.ledger.record(entry(manifest, "b", keep_probability=1.0))
        kept.mark(2, kind="unsure")  # written while the reader is open, and seen by it
        assert [row.request_id for row in reader.kept()] == ["a", "b"]
        assert kept.failures() == 0
        reader.close()


def test_tables_of_another_version_and_none(tmp_path: Path, manifest: bundle.Manifest) -> None:
    old = str(tmp_path / "old")
    write_version_1(old, manifest)
    with pytest.raises(SchemaError, match="schema version 1, this reads version 5: start this version of the service"):
        Reader(old)
    later = str(tmp_path / "later")
    database = connect(later)
    schema.prepare(database)
    database.execute("UPDATE ledger SET version = 6")
    with pytest.raises(SchemaError, match="knows versions up to 5: run the version that wrote it"):
        Reader(later)
    database.execute("DELETE FROM ledger")
    database.close()
    with pytest.raises(SchemaError, match="the table ledger has no row"):
        Reader(later)
    connect(str(tmp_path / "empty")).close()
    with pytest.raises(SchemaError, match="no service has written it"):
        Reader(str(tmp_path / "empty"))
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        Reader(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
