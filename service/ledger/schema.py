"""The ledger's tables in SQL, their version, and the way from each earlier version to this one.

    ledger      one row: the version of the schema, the bytes of its rows, and an id that its image store holds
    decisions   one row for each classified image. `node`: the path (fruit/citrus) that a refused one was told of a
                taxonomy; '' where nothing could be promised, NULL where no node was asked for or nobody noted it. Of a
                kept one: keep_probability, with which a row like it was kept (1 for what the setting `keep` keeps, else
                the rate of the audit sample), image_key, embedding; sampled and sample_rate for those in the audit
                sample. `image` holds what versions 1 and 2 kept
    feedback    one row for each true label; of several for one image the last one counts, the others are history
    images      one row for each file in the image store: its bytes, when it last came, and whether it is still on its
                way there ('arriving'), is there ('kept') or nothing refers to it and it is being deleted ('leaving')
    review_groups, claims    which group an image was put in, and who is looking at what until when
    deployments which bundle was put in service when; the last row is what every replica serves whose `setting`,
                TAILGUARD_BUNDLE, is the same
    tallies     images by predicted label, decision and true label ('' while there is none), changed in the transaction
                that appends, so that they always agree with the rows; what retention deletes stays counted
    refusals    images refused for a reason (unknown, unsure, unfit), by the group of the predicted class, likewise
    models      which bundle decided, with its classes

Statements hold {id}, {blob} and {newest} where SQLite and PostgreSQL differ; see database.py.
"""

import sqlite3
import uuid
from contextlib import closing, suppress
from pathlib import Path

from service.contract.bundle import OUTLIER_LABEL
from service.errors import SettingsError
from service.ledger.database import MEMORY, POSTGRESQL, Database, connect
from service.settings import PREFIX

VERSION = 5
ROW_BYTES = 512  # of a decision without its image, with its part of the indexes: measured, rounded up
TABLE_NAMES = (
    "ledger", "decisions", "feedback", "tallies", "refusals", "models", "images", "review_groups", "claims",
    "deployments",
)  # fmt: skip

TALLIES = """CREATE TABLE {name} (
    model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL, by_deployment INTEGER NOT NULL,
    label TEXT NOT NULL, decision TEXT NOT NULL, truth TEXT NOT NULL, images BIGINT NOT NULL,
    PRIMARY KEY (model, operating_point, scope, by_deployment, label, decision, truth))"""
CLIENT_INDEX = (
    "CREATE INDEX decisions_client ON decisions (client_id, position{newest}) WHERE client_id IS NOT NULL"  # few have
)
KEPT = (  # what came with version 3
    """CREATE TABLE images (image_key TEXT PRIMARY KEY, bytes BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL,
        state TEXT NOT NULL)""",
    "CREATE INDEX images_time ON images (time)",
    "CREATE INDEX decisions_image ON decisions (image_key) WHERE image_key IS NOT NULL",
    "CREATE INDEX decisions_kept ON decisions (row) WHERE keep_probability IS NOT NULL",
    "CREATE INDEX decisions_sampled ON decisions (row) WHERE sampled = 1",
    "CREATE TABLE review_groups (decision_row BIGINT PRIMARY KEY, group_id TEXT NOT NULL)",
    "CREATE TABLE claims (item TEXT PRIMARY KEY, reviewer TEXT NOT NULL, until DOUBLE PRECISION NOT NULL)",
    """CREATE TABLE deployments (
        row {id}, time DOUBLE PRECISION NOT NULL, action TEXT NOT NULL, path TEXT NOT NULL, name TEXT NOT NULL,
        version TEXT NOT NULL, sha256 TEXT NOT NULL, api_key TEXT, note TEXT, setting TEXT NOT NULL)""",
)
REASONS = (  # what came with version 4; earlier rows have no reason
    """CREATE TABLE refusals (
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL, by_deployment INTEGER NOT NULL,
        class_group TEXT NOT NULL, reason TEXT NOT NULL, images BIGINT NOT NULL,
        PRIMARY KEY (model, operating_point, scope, by_deployment, class_group, reason))""",
)
CREATE = (
    "CREATE TABLE ledger (version INTEGER NOT NULL, bytes BIGINT NOT NULL, id TEXT)",
    f"INSERT INTO ledger VALUES ({VERSION}, 0, NULL)",
    """CREATE TABLE models (
        model {id}, name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, classes TEXT NOT NULL,
        since DOUBLE PRECISION NOT NULL, UNIQUE (name, version, sha256))""",
    """CREATE TABLE decisions (
        row {id}, time DOUBLE PRECISION NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL,
        label TEXT NOT NULL, class_group TEXT NOT NULL, decision TEXT NOT NULL,
        score DOUBLE PRECISION, threshold DOUBLE PRECISION NOT NULL, p_value DOUBLE PRECISION NOT NULL,
        scores TEXT NOT NULL, api_key TEXT, image {blob},
        client_id TEXT, by_deployment INTEGER NOT NULL DEFAULT 1, image_key TEXT, embedding {blob},
        sampled INTEGER NOT NULL DEFAULT 0, sample_rate DOUBLE PRECISION, keep_probability DOUBLE PRECISION,
        reason TEXT, node TEXT)""",
    "CREATE INDEX decisions_request ON decisions (request_id, position{newest})",
    CLIENT_INDEX,
    """CREATE TABLE feedback (
        row {id}, time DOUBLE PRECISION NOT NULL, decision_row BIGINT NOT NULL, label TEXT NOT NULL, api_key TEXT,
        kind TEXT NOT NULL DEFAULT 'class', source TEXT NOT NULL DEFAULT 'feedback', group_id TEXT)""",
    "CREATE INDEX feedback_decision ON feedback (decision_row{newest})",
    TALLIES.replace("{name}", "tallies"),
    *KEPT,
    *REASONS,
)
FROM_1 = (  # decided by: nobody noted it; nearly all were the deployment's
    "ALTER TABLE decisions ADD COLUMN client_id TEXT",
    "ALTER TABLE decisions ADD COLUMN by_deployment INTEGER NOT NULL DEFAULT 1",
    CLIENT_INDEX,
    TALLIES.replace("{name}", "new_tallies"),
    "INSERT INTO new_tallies SELECT model, operating_point, scope, 1, label, decision, truth, images FROM tallies",
    "DROP TABLE tallies",
    "ALTER TABLE new_tallies RENAME TO tallies",
    "CREATE TABLE ledger (version INTEGER NOT NULL, bytes BIGINT NOT NULL)",
    f"INSERT INTO ledger SELECT 2, count(*) * {ROW_BYTES} + COALESCE(sum(length(image)), 0) FROM decisions",
)
FROM_2 = (
    "ALTER TABLE ledger ADD COLUMN id TEXT",
    "ALTER TABLE decisions ADD COLUMN image_key TEXT",
    "ALTER TABLE decisions ADD COLUMN embedding {blob}",
    "ALTER TABLE decisions ADD COLUMN sampled INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE decisions ADD COLUMN sample_rate DOUBLE PRECISION",
    "ALTER TABLE decisions ADD COLUMN keep_probability DOUBLE PRECISION",
    "ALTER TABLE feedback ADD COLUMN kind TEXT NOT NULL DEFAULT 'class'",
    "ALTER TABLE feedback ADD COLUMN source TEXT NOT NULL DEFAULT 'feedback'",
    "ALTER TABLE feedback ADD COLUMN group_id TEXT",
    f"UPDATE feedback SET kind = 'outlier' WHERE label = '{OUTLIER_LABEL}'",
    *KEPT,
)
FROM_3 = ("ALTER TABLE decisions ADD COLUMN reason TEXT", *REASONS)
FROM_4 = ("ALTER TABLE decisions ADD COLUMN node TEXT",)  # of earlier rows nobody noted it
MIGRATIONS = {1: FROM_1, 2: FROM_2, 3: FROM_3, 4: FROM_4}  # from a version to the next


class SchemaError(Exception):
    """The tables are of a version that this service does not know."""


def of_database(error: Exception) -> bool:
    """Whether a ledger's database or its driver has failed, and not this program; psycopg is not there everywhere."""
    return (
        isinstance(error, sqlite3.Error | OSError | SchemaError)
        or type(error).__module__.partition(".")[0] == "psycopg"
    )


def prepare(database: Database) -> None:
    """Make the tables, or bring those of an earlier version to this one, in one transaction.

    Raises SchemaError for tables of a later version, and then nothing has changed.
    """
    with database.transaction():
        version = _version(database)
        if version == VERSION:
            return
        statements = CREATE if version == 0 else [s for step in range(version, VERSION) for s in MIGRATIONS[step]]
        for statement in statements:
            database.execute(statement.format(**database.words))
        database.execute("UPDATE ledger SET version = ?, id = COALESCE(id, ?)", (VERSION, uuid.uuid4().hex))


def check(database: Database) -> None:
    """Raise SchemaError unless the tables are of this version, without changing anything."""
    if (version := _version(database)) != VERSION:
        remedy = "no service has written it" if version == 0 else "start this version of the service on it once"
        raise SchemaError(f"the ledger has schema version {version}, this reads version {VERSION}: {remedy}")


def require_ours(where: str, option: str = f"{PREFIX}LEDGER") -> None:
    """Raise SettingsError for an SQLite file of a later version, or of another application, before anything is written.

    What cannot be read at this moment passes: the service starts and tries again.
    """
    if where == MEMORY or where.startswith(POSTGRESQL) or not Path(where).exists():
        return
    with suppress(sqlite3.Error), closing(connect(where, read_only=True)) as database:
        tables = [name for (name,) in database.fetch("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if tables and not {"ledger", "decisions"} & set(tables):
            raise SettingsError(
                f"{option}={where} holds the tables of something else ({', '.join(tables)[:80]}): name a file of "
                "the ledger's own"
            )
        try:
            _version(database)
        except SchemaError as error:
            raise SettingsError(f"{option}={where}: {error}") from error


def _version(database: Database) -> int:
    """Of the tables that are there; 0 for none. Version 1 had no table of its own for it.

    Raises SchemaError for a later one, and for none in the table.
    """
    if database.has_table("ledger"):
        rows = database.fetch("SELECT version FROM ledger")
        if not rows:
            raise SchemaError("the table ledger has no row, as no service leaves it: name another ledger")
        if (version := int(rows[0][0])) > VERSION:
            raise SchemaError(
                f"the ledger has schema version {version}, this service knows versions up to {VERSION}: run the "
                "version that wrote it, or name another ledger"
            )
        return version
    return 1 if database.has_table("decisions") else 0
