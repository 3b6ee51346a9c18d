"""Runs in MLflow, at `sqlite:///mlflow.db` or `http://tracking:5000`; MLFLOW_EXPERIMENT_NAME names another experiment.

A run is known by its name and finished by its digest, which is written last. One that was cut short, or that says
something else by now, is deleted and sent again.
"""

import os
import re
import time
from typing import Any

from service.contract.lines import one_line
from training.tracking.record import Point, Record

EXPERIMENT = "tailguard"
RUN_TAG, DIGEST_TAG = "tailguard.run", "tailguard.digest"
AT_ONCE, MOST_PARAMS = 1000, 100  # of one request, as MLflow has it
NAME = re.compile(r"[^\w./ -]")  # what no metric's name may hold


def require(uri: str) -> None:
    """ValueError where MLflow is not installed or does not answer at `uri`."""
    _client(uri)


def send(record: Record, uri: str) -> str:
    """Write the run, unless it is there; in words what was done. ValueError where MLflow fails at it."""
    client = _client(uri)
    try:
        return _sent(record, client)
    except Exception as error:  # each kind of place has its own
        raise ValueError(
            f"--mlflow {uri}: {record.name} was not sent whole ({one_line(error)}): what was trained is kept, give the "
            "same command again"
        ) from error


def _sent(record: Record, client: Any) -> str:
    entities = _mlflow().entities
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    quoted = record.name.replace("'", r"\'")
    before = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{quoted}'")
    if any(run.data.tags.get(DIGEST_TAG) == record.digest for run in before):
        return "there already"
    for run in before:
        client.delete_run(run.info.run_id)
    made = client.create_run(experiment, tags={RUN_TAG: record.name, **record.tags}, run_name=record.name).info.run_id
    now = int(time.time() * 1000)
    params = [entities.Param(key, value) for key, value in record.params.items()]
    points = [*record.series, *(Point(name, record.steps, value) for name, value in record.figures.items())]
    metrics = [entities.Metric(NAME.sub("_", name), value, now, step) for name, step, value in points]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(made, params=params[start : start + MOST_PARAMS])
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(made, metrics=metrics[start : start + AT_ONCE])
    for path in record.files:
        client.log_artifact(made, str(path))
    client.set_tag(made, DIGEST_TAG, record.digest)
    client.set_terminated(made)
    return "replaced" if before else "sent"


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise ValueError(f"--mlflow needs MLflow ({error}): pip install 'tailguard[mlflow]'") from error
    return mlflow


def _client(uri: str) -> Any:
    mlflow = _mlflow()
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # each kind of place has its own
        raise ValueError(f"--mlflow {uri} cannot be used: {one_line(error)}") from error
    return client
