"""The ledger's tables in SQL, their version, and the way from each earlier version to this one.

    ledger      one row: the version of the schema, and the bytes that rows and their images take
    decisions   one row for each classified image
    feedback    one row for each true label; of several for one image the last one counts, the others are history
    tallies     images by predicted label, decision and true label ('' while there is none), changed in the transaction
                that appends, so that they always agree with the rows; what retention deletes stays counted
    models      which bundle decided, with its classes

Statements hold {id}, {blob} and {newest} where SQLite and PostgreSQL differ; see database.py.
"""

from service.ledger.database import Database

VERSION = 2
ROW_BYTES = 512  # of a decision without its image, with its part of the indexes: measured, rounded up
TABLE_NAMES = ("ledger", "decisions", "feedback", "tallies", "models")

TALLIES = """CREATE TABLE {name} (
    model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL, by_deployment INTEGER NOT NULL,
    label TEXT NOT NULL, decision TEXT NOT NULL, truth TEXT NOT NULL, images BIGINT NOT NULL,
    PRIMARY KEY (model, operating_point, scope, by_deployment, label, decision, truth))"""
CLIENT_INDEX = (
    "CREATE INDEX decisions_client ON decisions (client_id, position{newest}) WHERE client_id IS NOT NULL"  # few have
)
CREATE = (
    """CREATE TABLE models (
        model {id}, name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, classes TEXT NOT NULL,
        since DOUBLE PRECISION NOT NULL, UNIQUE (name, version, sha256))""",
    """CREATE TABLE decisions (
        row {id}, time DOUBLE PRECISION NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL,
        label TEXT NOT NULL, class_group TEXT NOT NULL, decision TEXT NOT NULL,
        score DOUBLE PRECISION, threshold DOUBLE PRECISION NOT NULL, p_value DOUBLE PRECISION NOT NULL,
        scores TEXT NOT NULL, api_key TEXT, image {blob},
        client_id TEXT, by_deployment INTEGER NOT NULL DEFAULT 1)""",
    "CREATE INDEX decisions_request ON decisions (request_id, position{newest})",
    CLIENT_INDEX,
    """CREATE TABLE feedback (
        row {id}, time DOUBLE PRECISION NOT NULL, decision_row BIGINT NOT NULL, label TEXT NOT NULL, api_key TEXT)""",
    "CREATE INDEX feedback_decision ON feedback (decision_row{newest})",
    TALLIES.replace("{name}", "tallies"),
)
COUNT_BYTES = f"(SELECT count(*) * {ROW_BYTES} + COALESCE(sum(length(image)), 0) FROM decisions)"
FROM_1 = (  # decided by: nobody noted it; nearly all were the deployment's
    "ALTER TABLE decisions ADD COLUMN client_id TEXT",
    "ALTER TABLE decisions ADD COLUMN by_deployment INTEGER NOT NULL DEFAULT 1",
    CLIENT_INDEX,
    TALLIES.replace("{name}", "new_tallies"),
    "INSERT INTO new_tallies SELECT model, operating_point, scope, 1, label, decision, truth, images FROM tallies",
    "DROP TABLE tallies",
    "ALTER TABLE new_tallies RENAME TO tallies",
)
MIGRATIONS = {1: FROM_1}  # from a version to the next


class SchemaError(Exception):
    """The tables are of a version that this service does not know."""


def prepare(database: Database) -> None:
    """Make the tables, or bring those of an earlier version to this one, in one transaction.

    Raises SchemaError for tables of a later version, and then nothing has changed.
    """
    with database.transaction():
        version = _version(database)
        if version == VERSION:
            return
        if version > VERSION:
            raise SchemaError(
                f"the ledger has schema version {version}, this service knows versions up to {VERSION}: "
                "run the version that wrote it, or name another ledger"
            )
        statements = CREATE if version == 0 else [s for step in range(version, VERSION) for s in MIGRATIONS[step]]
        for statement in statements:
            database.execute(statement.format(**database.words))
        if version < 2:
            database.execute("CREATE TABLE ledger (version INTEGER NOT NULL, bytes BIGINT NOT NULL)")
            database.execute(f"INSERT INTO ledger SELECT {VERSION}, {COUNT_BYTES}")
        else:
            database.execute("UPDATE ledger SET version = ?", (VERSION,))


def _version(database: Database) -> int:
    """Of the tables that are there; 0 for none. Version 1 had no table of its own for it."""
    if database.has_table("ledger"):
        return int(database.fetch("SELECT version FROM ledger")[0][0])
    return 1 if database.has_table("decisions") else 0
