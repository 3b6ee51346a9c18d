"""service/ledger/schema.py: the tables of earlier versions become those of this one, on both databases."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.contract import bundle
from service.ledger import schema
from service.ledger.database import connect
from service.ledger.rows import RefusalKey, TallyKey, key_of
from service.ledger.tables import Tables
from tests.service.ledger.test_ledger import Kept, entry, read

VERSION_1 = (  # as the service made them before there was a version
    """CREATE TABLE IF NOT EXISTS models (
        model {id}, name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, classes TEXT NOT NULL,
        since DOUBLE PRECISION NOT NULL, UNIQUE (name, version, sha256))""",
    """CREATE TABLE IF NOT EXISTS decisions (
        row {id}, time DOUBLE PRECISION NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL,
        label TEXT NOT NULL, class_group TEXT NOT NULL, decision TEXT NOT NULL,
        score DOUBLE PRECISION, threshold DOUBLE PRECISION NOT NULL, p_value DOUBLE PRECISION NOT NULL,
        scores TEXT NOT NULL, api_key TEXT, image {blob})""",
    "CREATE INDEX IF NOT EXISTS decisions_request ON decisions (request_id, position{newest})",
    """CREATE TABLE IF NOT EXISTS feedback (
        row {id}, time DOUBLE PRECISION NOT NULL, decision_row BIGINT NOT NULL, label TEXT NOT NULL, api_key TEXT)""",
    "CREATE INDEX IF NOT EXISTS feedback_decision ON feedback (decision_row{newest})",
    """CREATE TABLE IF NOT EXISTS tallies (
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL, label TEXT NOT NULL,
        decision TEXT NOT NULL, truth TEXT NOT NULL, images BIGINT NOT NULL,
        PRIMARY KEY (model, operating_point, scope, label, decision, truth))""",
)


def write_version_1(where: str, manifest: bundle.Manifest) -> None:
    """Two decisions, one with an image of 1000 bytes, one of them labelled."""
    database = connect(where)
    for statement in VERSION_1:
        database.execute(statement.format(**database.words))
    database.execute(
        "INSERT INTO models (name, version, sha256, classes, since) VALUES (?, ?, ?, ?, 1.0)",
        (*key_of(manifest), '{"red": "many", "green": "medium", "blue": "few"}'),
    )
    rows: list[tuple[Any, ...]] = [("a", None), ("b", bytes(1000))]
    for request_id, image in rows:
        database.execute(
            "INSERT INTO decisions (time, request_id, position, model, operating_point, scope, label, class_group, "
            "decision, score, threshold, p_value, scores, api_key, image) VALUES (4e9, ?, 0, 1, 'id95', 'group', "
            "'red', 'many', 'accept', -7.0, -5.5, 0.5, '{}', 'ci', ?)",
            (request_id, image),
        )
    database.execute("INSERT INTO feedback (time, decision_row, label, api_key) VALUES (4e9, 1, 'red', 'ci')")
    database.execute_many(
        "INSERT INTO tallies VALUES (1, 'id95', 'group', 'red', 'accept', ?, ?)", [("", 2), ("red", 1)]
    )
    database.close()


def test_version_1_is_migrated_and_goes_on(where: str, manifest: bundle.Manifest) -> None:
    write_version_1(where, manifest)
    with Kept(where) as kept:
        assert kept.label("a", 0, "green", key="ci").outcome == "wrong"
        kept.ledger.record(entry(manifest, "c", client_id="a", key="ci"))
        assert kept.label("b", 0, "red", key="ci").outcome == "correct"
        tally = kept.ledger.tally(manifest)
    assert tally is not None
    red = TallyKey("id95", "group", True, "red", "accept", "")
    assert +tally.images == {red: 3, red._replace(truth="red"): 1, red._replace(truth="green"): 1}
    assert read(where, "SELECT version, bytes FROM ledger") == [(5, 3 * schema.ROW_BYTES + 1000)]
    assert read(where, "SELECT request_id, client_id, by_deployment FROM decisions ORDER BY row") == [
        ("a", None, 1), ("b", None, 1), ("c", "a", 1)
    ]  # fmt: skip


def test_version_2_is_migrated_with_its_bytes_and_its_outliers(where: str, manifest: bundle.Manifest) -> None:
    write_version_1(where, manifest)
    database = connect(where)
    for statement in (*schema.FROM_1, "UPDATE ledger SET bytes = 7"):  # bytes are carried over, not counted anew
        database.execute(statement.format(**database.words))
    database.execute("INSERT INTO feedback (time, decision_row, label, api_key) VALUES (4e9, 2, 'outlier', 'ci')")
    database.close()
    with Kept(where) as kept:
        assert kept.label("b", 0, "outlier", key="ci").outcome == "outlier"  # as before: nothing is appended
        assert kept.labelled == []
    assert read(where, "SELECT version, bytes, length(id) FROM ledger") == [(5, 7, 32)]
    assert read(where, "SELECT label, kind, source, group_id FROM feedback ORDER BY row") == [
        ("red", "class", "feedback", None), ("outlier", "outlier", "feedback", None)
    ]  # fmt: skip
    kept_columns = "length(image), image_key, embedding, sampled, sample_rate, keep_probability"
    assert read(where, f"SELECT {kept_columns} FROM decisions WHERE row = 2") == [(1000, None, None, 0, None, None)]


def test_version_3_is_migrated_with_its_id_and_counts_reasons_from_then_on(
    where: str, manifest: bundle.Manifest
) -> None:
    write_version_1(where, manifest)
    database = connect(where)
    for statement in (*schema.FROM_1, *schema.FROM_2, "UPDATE ledger SET version = 3, id = 'the image store knows it'"):
        database.execute(statement.format(**database.words))
    database.close()
    refused = entry(manifest, "c", class_index=1)
    refused = refused._replace(verdict=replace(refused.verdict, decision="reject", reason="unsure"))
    with Kept(where) as kept:
        kept.ledger.record(refused)
        kept.ledger.record(refused._replace(request_id="d"))
        kept.label("d", 0, "green")
        tally = kept.ledger.tally(manifest)
    assert tally is not None
    expected = {RefusalKey("id95", "group", True, manifest.classes[refused.verdict.class_index].group, "unsure"): 2}
    assert tally.refusals == expected
    assert read(where, "SELECT id, version FROM ledger") == [("the image store knows it", 5)]
    assert read(where, "SELECT reason FROM decisions ORDER BY row") == [(None,), (None,), ("unsure",), ("unsure",)]
    with Kept(where) as again:  # what was counted is there after a start
        again.label("d", 0, "green")
        found = again.ledger.tally(manifest)
    assert found is not None
    assert found.refusals == expected


def test_version_4_is_migrated_and_its_rows_are_read_as_before(where: str, manifest: bundle.Manifest) -> None:
    write_version_1(where, manifest)
    database = connect(where)
    for statement in (*schema.FROM_1, *schema.FROM_2, *schema.FROM_3, "UPDATE ledger SET version = 4, id = 'kept'"):
        database.execute(statement.format(**database.words))
    database.execute("UPDATE decisions SET decision = 'reject', reason = 'unsure', keep_probability = 1 WHERE row = 1")
    database.close()
    told = {"c": "warm/red", "d": "", "e": None}  # a node; nothing that could be promised; none was asked for
    with Kept(where) as kept:
        for request_id, node in told.items():
            kept.ledger.record(entry(manifest, request_id, node=node, keep_probability=1.0))
        kept.label("e", 0, "green")
        reader = kept.ledger.reader()
        rows = reader.kept()
        reader.close()
    assert [(row.request_id, row.reason, row.node) for row in rows] == [
        ("a", "unsure", None), ("c", None, "warm/red"), ("d", None, ""), ("e", None, None)
    ]  # fmt: skip
    assert rows[0].label is not None
    assert rows[0].label.label == "red"
    assert read(where, "SELECT version, id FROM ledger") == [(5, "kept")]


def test_a_migration_that_fails_changes_nothing(
    where: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version_1(where, manifest)
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS | {2: (*schema.FROM_2, "SELECT 1 FROM nowhere")})
    database = connect(where)
    with pytest.raises(Exception, match="nowhere"):
        schema.prepare(database)
    database.close()
    assert read(where, "SELECT images FROM tallies ORDER BY images") == [(1,), (2,)]
    monkeypatch.undo()
    with Kept(where) as kept:
        assert kept.label("a", 0, "red", key="ci").outcome == "correct"


def test_a_later_version_is_refused_in_words(tmp_path: Path) -> None:
    where = str(tmp_path / "ledger.sqlite3")
    Tables(connect(where)).close()
    database = connect(where)
    database.execute("UPDATE ledger SET version = 6")
    with pytest.raises(schema.SchemaError, match="schema version 6, this service knows versions up to 5"):
        schema.prepare(database)
    database.close()


def test_new_tables_and_migrated_ones_are_the_same(tmp_path: Path, manifest: bundle.Manifest) -> None:
    new, old = str(tmp_path / "new"), str(tmp_path / "old")
    write_version_1(old, manifest)
    columns = []
    for path in (new, old):
        Tables(connect(path)).close()
        tables = {
            name: read(path, f"SELECT name, type FROM pragma_table_info('{name}')") for name in schema.TABLE_NAMES
        }
        columns.append((tables, read(path, "SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY name")))
    assert columns[0] == columns[1]


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_new_file_that_another_is_at_is_waited_for(tmp_path: Path, lock: str) -> None:
    """SQLite does not wait itself where the journal of a file is changed while another connection holds it."""
    path = str(tmp_path / "ledger.sqlite3")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute(f"BEGIN {lock}")
    other.execute("CREATE TABLE t (a INTEGER)")
    release = threading.Timer(0.2, other.execute, ["COMMIT"])
    release.start()
    mine = connect(path)
    assert mine.has_table("t")
    mine.close()
    release.join()
    other.close()
