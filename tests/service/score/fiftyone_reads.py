"""Reads a file of `score --format fiftyone` with FiftyOne itself, labels one sample, and writes the data set again.

    python -m venv V && V/bin/pip install fiftyone mongomock
    FIFTYONE_PYTHON=V/bin/python python -m pytest tests/service/score/test_labelling.py

FiftyOne wants a MongoDB server, which no package registry holds; mongomock stands in for it, in memory. All else is
FiftyOne's own code. It runs in an environment of its own: FiftyOne wants older versions of packages than this project.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ |= {
    "FIFTYONE_DATABASE_URI": "mongodb://localhost:27017", "FIFTYONE_DO_NOT_TRACK": "true",
    "FIFTYONE_DATABASE_VALIDATION": "false", "FIFTYONE_DISABLE_SERVICES": "1", "FIFTYONE_SHOW_PROGRESS_BARS": "false",
}  # fmt: skip

import fiftyone.core.odm.database as database
import mongoengine
import mongoengine.connection
import mongomock

client = mongomock.MongoClient()
client._closed = False
client.__dict__["close"] = lambda: None
mongoengine.connection._connections["default"] = client


def connect(name: str, **given: object) -> mongomock.MongoClient:
    known = {"name": name, "username": None, "authentication_source": None, "authmechanism": None}
    mongoengine.connection._connection_settings["default"] = known
    return client


mongoengine.connect = connect
database.pymongo.MongoClient = lambda **given: client
database._validate_db_version = lambda *given: None

import fiftyone as fo  # noqa: E402  # after its database

source, again = map(Path, sys.argv[1:])
found = fo.Dataset.from_json(str(source))
refused = found.match_tags("reject").first()
refused["ground_truth"] = fo.Classification(label="outlier")
refused.save()
found.write_json(str(again))
print(
    json.dumps(
        {
            "media_type": found.media_type,
            "decisions": Counter(value or "null" for value in found.values("predictions.decision")),
            "errors": [value for value in found.values("error") if value],
            "fields": list(found.get_field_schema(flat=True)),
        }
    )
)
