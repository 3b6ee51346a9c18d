"""Networks → one ONNX graph → a bundle, its thresholds calibrated on that very graph."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from service.contract import bundle
from service.contract.bundle import Input
from service.contract.calibration import calibrate
from service.contract.calibration.mix import ClassMix
from service.contract.images import load as load_image
from training.data.decode import MAX_PIXELS
from training.data.loading import Data
from training.data.processes import usable_cpus
from training.data.readers import Images, Pixels
from training.evaluation.measure import data_groups, measure
from training.evaluation.predict import Outputs, Predict, deployed, torch_predict
from training.export import card, examples
from training.export.about import AboutData
from training.export.graph import onnx_predict, to_onnx
from training.export.precision import Asked, Precision, at_precision, compare, require_precision
from training.network.frozen import FrozenBackbone
from training.runs.checkpoint import Run
from training.runs.files import Json
from training.scores.scores import require_score

PARITY_IMAGES = 2000
PARITY_SHARE = 0.001
CPU = torch.device("cpu")


class ExportError(ValueError):
    """The graph does not decide as the network does; nothing was written."""


# ------------------------------------------------------------------------------------------------------ the checks


def require_target(out: Path) -> None:
    """ExportError unless `out` = <models>/<name>/<version> is new and the contract permits its name and version."""
    for field, flag, value in (("name", "--name", out.parent.name), ("version", "--version", out.name)):
        pattern = next(m.pattern for m in bundle.Manifest.model_fields[field].metadata if hasattr(m, "pattern"))
        if not re.fullmatch(pattern, value):
            small = "small letters, " if field == "name" else "letters, "
            raise ExportError(f"{flag} {value!r}: use {small}digits and . _ -, beginning with a letter or a digit")
    if out.exists():
        raise ExportError(f"{out} exists already: choose another version, or remove it first")


def decisions(outputs: Outputs, points: Json, score: str, groups: NDArray[np.str_]) -> NDArray[np.int64]:
    """[N, 1 + points]: the class, then accept or reject at each operating point with the thresholds by group."""
    columns = [outputs.predictions]
    for point in points.values():
        columns.append(
            calibrate.rejected(outputs.scores[score], groups[outputs.predictions], point, "group").astype(np.int64)
        )
    return np.stack(columns, axis=1)


def changed(one: Outputs, two: Outputs, points: Json, score: str, groups: NDArray[np.str_]) -> float:
    """Share of images whose class or any accept/reject differs."""
    both = (decisions(o, points, score, groups) for o in (one, two))
    return float((next(both) != next(both)).any(axis=1).mean())


def real_images(data: Data, count: int) -> Images:
    """`count` images that are neither test nor OOD test, half of them outliers where there are any.

    A small data set is gone through again, each time shifted by another pixel.
    """
    n = min(len(data.calibration_outliers) + len(data.outliers), count // 2)
    sets = ((count - n, data.calibration.images, data.train.images), (n, data.calibration_outliers, data.outliers))
    parts = [part for wanted, first, then in sets for part in (first[:wanted], then[: max(0, wanted - len(first))])]
    if any(part.ndim == 3 for part in parts):  # features cannot be shifted; the image's own view is the first
        return np.concatenate([part[:, :1] for part in parts])
    images = np.concatenate(parts)
    rounds = [np.roll(images, shift, axis=2) for shift in range(-(-count // len(images)))]
    return np.concatenate(rounds)[:count]


# ------------------------------------------------------------------------------------------------------ the bundle


def build(
    run: Run, data: Data, temperature: float, asked: Asked, points: Json, score: str, extra: Sequence[str] = (),
    device: torch.device = CPU, frozen: FrozenBackbone | None = None,
) -> tuple[bytes, Precision, Json]:  # fmt: skip
    """(graph with `score` and the `extra` ones, its precision, parity record); `frozen` is what the run stands on.

    Raises ExportError when fp32 ONNX and torch decide differently on more than 0.1%.
    """
    images = real_images(data, PARITY_IMAGES)
    groups = data_groups(data).of_class
    module = deployed(run, temperature, scores=[score, *extra], train=data.train, device=device)
    from_torch = torch_predict(module, CPU)(images)
    graph = to_onnx(module, data.size_px, frozen.backbone.graph() if frozen else None)
    onnx.checker.check_model(onnx.load(io.BytesIO(graph)))
    pixels = data.photographs or data
    if frozen:
        images = real_images(pixels, PARITY_IMAGES)[: len(images)]
    full = on_images(graph, frozen)(images)
    share = changed(from_torch, full, points, score, groups)
    if share > PARITY_SHARE:
        raise ExportError(
            f"torch and ONNX decide differently on {share:.2%} of {len(images)} images (at most {PARITY_SHARE:.1%} is "
            "allowed): nothing was written"
        )
    record: Json = {"images": len(images), "torch_against_onnx_decisions_changed": share}
    made, precision = at_precision(graph, asked, pixels, frozen)
    if made != graph:
        smaller = on_images(made, frozen)(images)
        require_finite(smaller, precision)
        record[f"{precision}_against_onnx_decisions_changed"] = changed(full, smaller, points, score, groups)
    return made, precision, record


def require_finite(outputs: Outputs, precision: str) -> None:
    """ExportError where a probability or a score is no number: a value of the trunk beyond the range of fp16."""
    if not all(np.isfinite(values).all() for values in (outputs.probabilities, *outputs.scores.values())):
        raise ExportError(f"in {precision} the graph gives values that are not finite: use --precision fp32")


def on_images(graph: bytes, frozen: FrozenBackbone | None) -> Predict:
    """Predict from images; at a backbone's size on every core, which also decode them, as it takes its time."""
    return onnx_predict(graph, workers=usable_cpus() if frozen else 1)


def golden_examples(
    graph: bytes, shape: Input, classes: tuple[str, ...], images: dict[str, bytes]
) -> tuple[dict[str, bytes], list[Json]]:
    """(files, golden records) of example images by name, through the very functions of the service."""
    files, golden = {}, []
    predict = onnx_predict(graph)
    for name, content in images.items():
        pixels = load_image(content, shape, max_pixels=MAX_PIXELS).pixels
        out = predict(pixels[None])
        files[f"examples/{name}"] = content
        golden.append(
            {
                "file": f"examples/{name}",
                "label": classes[int(out.predictions[0])],
                "probabilities": [float(p) for p in out.probabilities[0]],
                "scores": {key: float(value[0]) for key, value in out.scores.items()},
            }
        )
    return files, golden


def export(
    run: Run, data: Data, ood: dict[str, Pixels], calibration: Json, out: Path, *, precision: Asked,
    candidates: list[Json] | None = None, example_images: dict[str, bytes] | None = None, scores: Sequence[str] = (),
    about: AboutData | None = None, licence: str | None = None, device: torch.device = CPU,
    frozen: FrozenBackbone | None = None, lineage: Json | None = None,
) -> bundle.Manifest:  # fmt: skip
    """Write the bundle of a calibrated run to `out` = <models>/<name>/<version>. All of it appears, or nothing.

    `scores` are exported beside the deciding one, energy and MSP; those that are fitted are fitted on `device`.
    `example_images` (name → content of an image file) become the golden examples; not given: drawn ones. `about` and
    `licence` are what the card says of data set and bundle. `precision` auto is int8 where that can be.
    `lineage`: parent, added and comparison of a run that was taught.
    Raises ExportError when `out` exists or has no valid name, or when torch and ONNX decide differently.
    """
    require_target(out)
    require_precision(precision, frozen)
    about = about or AboutData.of(run.config)
    score, temperature = calibration["score"], calibration["temperature"]
    graph, made, parity = build(
        run, data, temperature, precision, calibration["operating_points"], score, scores, device, frozen
    )
    measured = measure(
        on_images(graph, frozen), data.photographs or data, ood, score=score, temperature=temperature, scope="group",
        **expected(calibration),
    )  # fmt: skip
    exported = measured["calibration"]["quantiles"]
    evaluation = measured["evaluation"] | {
        "parity": parity, "recipe": recipe(run), "data_set": about.record(), "licence": licence,
        "examples": {"given": len(example_images)} if example_images else {"given": 0},
        "score_choice": calibration.get("score_choice"),
    }  # fmt: skip
    lineage = lineage or {}
    if compared := lineage.get("comparison"):
        evaluation["comparison"] = compared
    if facts := run.provenance.get("backbone"):
        evaluation["backbone"] = facts
    if (moved := parity.get(f"{made}_against_onnx_decisions_changed")) is not None:
        evaluation[f"{made}_against_fp32"] = compare(calibration["evaluation"], evaluation, moved)
    if candidates:
        evaluation["candidates"] = candidates
    shape = Input(height_px=data.size_px, width_px=data.size_px, fit="stretch", resampling="bilinear")
    if at := frozen or run.tuned:
        shape = at.target
    files, golden = golden_examples(graph, shape, run.classes, example_images or examples.draw(run.classes))
    files[bundle.GRAPH_FILE] = graph
    fields = measured | {
        "name": out.parent.name,
        "version": out.name,
        "created": datetime.now(UTC).replace(microsecond=0),
        "precision": made,
        "passes": run.passes,
        "input": shape,
        "scores": {name: {"formula": require_score(name, True).formula, "temperature": 1.0} for name in exported},
        "deciding_score": score,
        "threshold_scope": "group",
        "evaluation": evaluation,
        "provenance": {
            "method": run.config.method,
            "dataset": f"{about.name}, imbalance {run.config.imbalance or 'as it is'}",
            "seed": run.config.seed,
            "command": run.provenance["command"],
            "commit": run.provenance["commit"],
            "versions": run.provenance["versions"] | {"onnx": onnx.__version__, "onnxruntime": ort.__version__},
            "parent": lineage.get("parent"),
            "added": lineage.get("added"),
        },
        "golden": golden,
    }
    draft = bundle.Manifest.model_validate({**fields, "format": bundle.FORMAT, "files": bundle.digests(files)})
    files |= card.plots(draft)
    files["CARD.md"] = card.render(draft).encode()
    return bundle.write(out, fields, files)


def expected(calibration: Json) -> dict[str, Any]:
    """The levels, and the mix of classes in service, that a calibration record was made for: arguments of measure."""
    levels = [level for point in calibration["operating_points"].values() if (level := point["level"]) is not None]
    record = calibration["calibration"]
    return {"levels": levels, "mix": ClassMix(record["class_mix"], np.array(record["class_shares"]))}


def recipe(run: Run) -> Json:
    """The settings that made the model, and its backbone's origin; of paths only the name, of the machine nothing."""
    hidden = {"data", "device", "threads", "checkpoint_epochs", "stage1_from", "split_from", "feature_cache"}
    kept = run.config.model_dump(mode="json", exclude=hidden)
    kept |= {key: path.name if (path := getattr(run.config, key)) else None for key in ("outliers", "weights")}
    return kept | {f"pretrained_{key}": value for key, value in run.provenance.get("backbone", {}).items()}
