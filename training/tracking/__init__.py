"""Where else can finished runs be seen? In MLflow and in TensorBoard, each run once, however often it is sent."""

from pathlib import Path

from training.runs.files import Json
from training.tracking import boards, mlflow_runs
from training.tracking.record import read

__all__ = ["require", "send"]


def require(mlflow: str | None, tensorboard: Path | None, runs: Path) -> None:
    """ValueError before hours of work where a package is missing, or the place cannot be reached or written to, or is
    that of the `runs` themselves."""
    if mlflow is not None:
        mlflow_runs.require(mlflow)
    if tensorboard is not None:
        boards.require(tensorboard, runs)


def send(folder: Path, result: Json, mlflow: str | None, tensorboard: Path | None) -> list[str]:
    """Send the finished run in `folder`, whose result is `result`; a line for each place says what was done."""
    if mlflow is None and tensorboard is None:
        return []
    record, lines = read(folder, result), []
    if mlflow is not None:
        lines.append(f"mlflow: {record.name}: {mlflow_runs.send(record, mlflow)}")
    if tensorboard is not None:
        lines.append(f"tensorboard: {record.name}: {boards.send(record, tensorboard)}")
    return lines
