"""The command `pareto`: size, time and quality of candidates on the calibration split, never on test images."""

import time

import numpy as np

from training.config import CIFAR_RESNET
from training.data.loading import Data
from training.evaluation.measure import split_results
from training.export.bundle import build, on_images
from training.export.graph import onnx_predict
from training.layout import markdown_table
from training.network.frozen import FrozenBackbone
from training.runs.checkpoint import Run
from training.runs.files import Json

TIMED_IMAGES = 200


def candidate(name: str, run: Run, data: Data, calibration: Json, frozen: FrozenBackbone | None = None) -> Json:
    """One row: name, trunk, passes, precision (int8, or fp32 where it cannot be), bytes, ms_per_image (one thread, one
    image at a time, as it lies at the graph's size), split_results, and what the precision changed."""
    score = calibration["score"]
    graph, precision, parity = build(
        run, data, calibration["temperature"], "auto", calibration["operating_points"], score, frozen=frozen
    )
    pixels = data.photographs or data
    predict, alone = on_images(graph, frozen), onnx_predict(graph)
    held = predict(pixels.calibration_outliers) if len(pixels.calibration_outliers) else None
    seconds = []
    for image in pixels.calibration.images[:TIMED_IMAGES]:
        started = time.perf_counter()
        alone(image[None])
        seconds.append(time.perf_counter() - started)
    return {
        "name": name,
        "trunk": f"width {run.config.width}" if run.config.backbone == CIFAR_RESNET else run.config.backbone,
        "passes": run.method.passes,
        "precision": precision,
        "bytes": len(graph),
        "ms_per_image": round(float(np.median(seconds)) * 1e3, 3),
        **split_results(predict(pixels.calibration.images), held, data, score),
        "decisions_changed_by_precision": parity.get(f"{precision}_against_onnx_decisions_changed"),
    }


def table(rows: list[Json]) -> str:
    """Markdown."""
    return markdown_table(
        list(rows[0]), [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    )
