"""Networks → one ONNX graph → a bundle, its thresholds calibrated on that very graph."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from service.contract import bundle, outcomes
from service.contract.bundle import Input
from service.contract.calibration.mix import ClassMix
from service.contract.calibration.taxonomy import ERROR
from service.contract.embedding import EMBEDDING
from training.data.loading import Data
from training.data.processes import usable_cpus
from training.data.readers import Pixels
from training.evaluation import fitness
from training.evaluation.measure import data_groups, measured
from training.evaluation.predict import Predict, deployed, torch_predict
from training.export import card, examples, exemplars, facts, heat_map
from training.export.about import AboutData
from training.export.embedding import fit as fit_embedding
from training.export.graph import onnx_embed, onnx_predict, to_onnx
from training.export.parity import ExportError, changed, cosine, real_images, require_finite
from training.export.precision import MOST_MOVED, Asked, Precision, at_precision, refuse, require_precision
from training.network.frozen import FrozenBackbone
from training.network.onnx_graph import with_outputs
from training.network.quality import with_quality
from training.runs import exported
from training.runs.checkpoint import Run
from training.runs.files import Json
from training.scores import either
from training.scores.either import Either, require_score

PARITY_IMAGES = 2000
PARITY_SHARE = 0.001
PARITY_ROWS = 64  # whose embeddings are compared
LEAST_COSINE = 0.999  # their mean, of torch's and the fp32 graph's
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------------ the checks


def require_target(out: Path, name: str | None = None) -> None:
    """ExportError unless `out` = <models>/<name>/<version> is new and the contract permits its name and version.

    `name` as it was given: a/b would be another folder, and b the name.
    """
    for field, flag, value in (("name", "--name", name or out.parent.name), ("version", "--version", out.name)):
        pattern = next(m.pattern for m in bundle.Manifest.model_fields[field].metadata if hasattr(m, "pattern"))
        if not re.fullmatch(pattern, value):
            small = "small letters, " if field == "name" else "letters, "
            raise ExportError(f"{flag} {value!r}: use {small}digits and . _ -, beginning with a letter or a digit")
    if out.exists():
        raise ExportError(bundle.already(out))


# ------------------------------------------------------------------------------------------------------ the bundle


def build(
    run: Run, data: Data, temperature: float, asked: Asked, points: Json, score: str, extra: Sequence[str] = (),
    device: torch.device = CPU, frozen: FrozenBackbone | None = None, embedding: nn.Module | None = None,
    two: Either | None = None,
) -> tuple[bytes, Precision, Json]:  # fmt: skip
    """(graph with `score` and the `extra` ones, its precision, parity record); `frozen` is what the run stands on.

    With `embedding`, which takes the features of stage 1, the graph gives that too. `two` is what stands behind a score
    like "energy|msp". Where int8 would change more than MOST_MOVED of the decisions, auto is fp32. Raises ExportError
    when fp32 ONNX and torch decide differently on more than 0.1%, and when the precision asked for changes more than
    MOST_MOVED.
    """
    images = real_images(data, PARITY_IMAGES)
    groups = data_groups(data).of_class
    module = deployed(run, temperature, scores=[score, *extra], train=data.train, device=device, either=two)
    from_torch = torch_predict(module, CPU)(images)
    features = images[:PARITY_ROWS]
    module.embedding = embedding
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
    if embedding is not None:
        alike = record["embedding_cosine_torch_onnx"] = cosine(module, features, graph, images[:PARITY_ROWS])
        if not alike >= LEAST_COSINE:
            raise ExportError(
                f"torch and ONNX give embeddings of cosine {alike:.4f}: at least {LEAST_COSINE} is wanted"
            )
    made, precision = at_precision(graph, asked, pixels, frozen)
    given = ["probabilities", *module.score_names, *([EMBEDDING] if embedding is not None else [])]
    graph, made, same = with_outputs(graph, given), with_outputs(made, given), made == graph
    if same:
        return made, precision, record
    smaller = on_images(made, frozen)(images)
    require_finite(smaller, precision)
    moved = record[f"{precision}_against_onnx_decisions_changed"] = changed(full, smaller, points, score, groups)
    if moved > MOST_MOVED:
        refuse(asked, precision, moved)
        return graph, "fp32", record
    if embedding is not None:
        record[f"embedding_cosine_torch_{precision}"] = cosine(module, features, made, images[:PARITY_ROWS])
    return made, precision, record


def on_images(graph: bytes, frozen: FrozenBackbone | None) -> Predict:
    """Predict from images; at a backbone's size on every core, which also decode them, as it takes its time."""
    return onnx_predict(graph, workers=usable_cpus() if frozen else 1)


def export(
    run: Run, data: Data, ood: dict[str, Pixels], calibration: Json, out: Path, *, precision: Asked,
    candidates: list[Json] | None = None, example_images: dict[str, bytes] | None = None, scores: Sequence[str] = (),
    about: AboutData | None = None, licence: str | None = None, device: torch.device = CPU,
    frozen: FrozenBackbone | None = None, lineage: Json | None = None, thumbnails: bool = False,
    exemplars_per_class: int = exemplars.MOST_OF_A_CLASS,
) -> bundle.Manifest:  # fmt: skip
    """Write the bundle of a calibrated run to `out` = <models>/<name>/<version>. All of it appears, or nothing.

    `scores` are exported beside the deciding one, energy and MSP; those that are fitted are fitted on `device`.
    `example_images` (name → content of an image file) become the golden examples; not given: drawn ones. `about` and
    `licence` are what the card says of data set and bundle. `precision` auto is int8 where that can be.
    `lineage`: parent, added and comparison of a run that was taught. `thumbnails`: the exemplars have pictures, under
    the licence that `about` names. Raises ExportError when `out` exists or has no valid name, or when torch and ONNX
    decide differently.
    """
    require_target(out)
    require_precision(precision, frozen)
    about = about or AboutData.of(run.config)
    about.require_licence(thumbnails)
    known, pixels = fit_embedding(run, data, device), data.photographs or data
    score, temperature, two = calibration["score"], calibration["temperature"], either.read(calibration.get("either"))
    graph, made, parity = build(
        run, data, temperature, precision, calibration["operating_points"], score, scores, device, frozen, known.module,
        two,
    )  # fmt: skip
    shape = Input(height_px=data.size_px, width_px=data.size_px, fit="stretch", resampling="bilinear")
    if at := frozen or run.tuned:
        shape = at.target
    fit = fitness.of_data(pixels, ood, shape) if two else None
    graph = with_quality(graph, fitness.spacing_of(pixels.train.images, shape)) if two else graph
    found, turned_out = measured(
        on_images(graph, frozen), pixels, ood, score=score, temperature=temperature, scope="group",
        either=two, fitness=fit, **expected(calibration),
    )  # fmt: skip
    given = found["calibration"]["quantiles"]
    where = heat_map.made(graph, run)
    lineage = lineage or {}
    evaluation = facts.evaluation(
        run, found["evaluation"], calibration, parity, made, turned_out, lineage, candidates
    ) | {
        "data_set": about.record(), "licence": licence, "examples": {"given": len(example_images or {})},
        "heat_map": where.reason,
    }  # fmt: skip
    files, golden = examples.golden(graph, shape, run.classes, example_images or examples.draw(run.classes))
    files[bundle.GRAPH_FILE] = graph
    files[outcomes.FILE] = outcomes.encode(turned_out)
    if where.record is not None:
        files[where.record.file] = where.nodes
    licence_of_pictures = about.licence if thumbnails else None
    files[exemplars.FILE], of_classes = exemplars.made(
        onnx_embed(graph), pixels.train, known, data.calibration.labels, licence_of_pictures, exemplars_per_class
    )
    fields = found | {
        "name": out.parent.name,
        "version": out.name,
        "created": datetime.now(UTC).replace(microsecond=0),
        "precision": made,
        "passes": run.passes,
        "input": shape,
        "scores": {name: {"formula": formula(name, two), "temperature": 1.0} for name in given},
        "deciding_score": score,
        "threshold_scope": "group",
        "evaluation": evaluation,
        "provenance": facts.provenance(run, about, lineage),
        "golden": golden,
        "embedding": known.record,
        "exemplars": of_classes,
        "outcomes": turned_out.described(),
        "heat_map": where.record,
    }
    draft = bundle.Manifest.model_validate({**fields, "format": bundle.FORMAT, "files": bundle.digests(files)})
    files |= card.plots(draft)
    files["CARD.md"] = card.render(draft).encode()
    with exported.noting(run.folder, out, graph):
        return bundle.write(out, fields, files)


def formula(score: str, two: Either | None) -> str:
    """Of a score, or of the pair `two` that has its name."""
    return two.formula if two and score == two.name else require_score(score, True).formula


def expected(calibration: Json) -> dict[str, Any]:
    """Levels, class mix in service and error of the taxonomy that a calibration was made for: arguments of measure."""
    levels = [level for point in calibration["operating_points"].values() if (level := point["level"]) is not None]
    record = calibration["calibration"]
    mix = ClassMix(record["class_mix"], np.array(record["class_shares"]))
    return {"levels": levels, "mix": mix, "taxonomy_error": calibration.get("taxonomy_error", ERROR)}
