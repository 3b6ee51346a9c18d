"""The command `pareto`: size, time and quality of int8 candidates on the calibration split, never on test images."""

import time
from pathlib import Path

import numpy as np

from training.data.loading import load
from training.evaluation.measure import split_results
from training.export.bundle import build
from training.export.graph import onnx_predict
from training.layout import markdown_table
from training.runs import checkpoint
from training.runs.files import Json

TIMED_IMAGES = 200


def candidate(folder: Path, calibration: Json) -> Json:
    """One row: name, width, passes, int8_bytes, ms_per_image (one thread, one image at a time), and split_results."""
    run = checkpoint.trained(folder)
    data = load(run.config, folder)
    score = calibration["score"]
    graph, parity = build(run, data, calibration["temperature"], "int8", calibration["operating_points"], score)
    predict = onnx_predict(graph)
    held = predict(data.calibration_outliers) if len(data.calibration_outliers) else None
    seconds = []
    for image in data.calibration.images[:TIMED_IMAGES]:
        started = time.perf_counter()
        predict(image[None])
        seconds.append(time.perf_counter() - started)
    return {
        "name": folder.name,
        "width": run.config.width,
        "passes": run.method.passes,
        "int8_bytes": len(graph),
        "ms_per_image": round(float(np.median(seconds)) * 1e3, 3),
        **split_results(predict(data.calibration.images), held, data, score),
        "int8_decisions_changed": parity["int8_against_onnx_decisions_changed"],
    }


def table(rows: list[Json]) -> str:
    """Markdown."""
    return markdown_table(
        list(rows[0]), [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    )
