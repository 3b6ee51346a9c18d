"""One row of the graph to its decision, and the one place that tells of it: metrics, shadow, ledger, trace.

Used by every route that classifies, so a stage means the same in all of them:

    receive     from the first byte of the request to its body, read
    queue       of an image: from there to its row, less its decode and its batch
    decode      of an image
    inference   of a batch
    respond     of a request: from its last decision to the end of its answer; RequestMiddleware observes it
"""

from time import perf_counter, time
from typing import Any, NamedTuple

from service.contract.decision import Verdict, decide_row
from service.contract.taxonomy import Node
from service.inference.rows import Image, Row
from service.ledger.policy import NOT_KEPT
from service.ledger.rows import Entry, packed
from service.ledger.writer import Ledger
from service.web.admission import Admitted


class Decided(NamedTuple):
    """One decided image and how long its stages took, in seconds; `total_s` from the first byte of the request."""

    row: Row
    verdict: Verdict
    receive_s: float
    queue_s: float
    total_s: float
    node: Node | None = None  # of the taxonomy, told of a refused image


def decide_image(admitted: Admitted[Any], position: int, image: Image, row: Row, done: float | None = None) -> Decided:
    """Decide on the image at `position` of a request and tell everybody who keeps count.

    `done`: the reading of perf_counter at which its row was there; None: now.
    """
    context, model, parameters = admitted.context, admitted.model, admitted.parameters
    runtime, manifest = context.runtime, model.manifest
    verdict = decide_row(
        manifest, row.probabilities, row.scores, parameters.operating_point, parameters.scope, row.quality,
        min(row.width_px, row.height_px),
    )  # fmt: skip
    done = perf_counter() if done is None else done
    queue_s = count_row(admitted, row, done)
    assert context.received is not None  # admit has set it

    model.metrics.count_decision(row.scores, verdict, by_deployment=parameters.is_default)
    tree = model.tree if verdict.asks_for_node else None
    node = None if tree is None else tree.deepest(row.probabilities)
    if tree is not None and parameters.is_default:
        model.metrics.told.count(node)
    if verdict.decision == "accept":
        model.metrics.stream.class_mix.observe(row.probabilities)
    file = image if isinstance(image, bytes) else None  # pixels fit this model only, and are no file to keep
    label = manifest.classes[verdict.class_index].name
    if runtime.shadow is not None and parameters.is_default and file is not None:
        runtime.shadow.offer(file, label, verdict, model.class_names)
    if runtime.ledger is not None:
        told = None if tree is None else node.joined if node else ""
        runtime.ledger.record(_entry(runtime.ledger, admitted, position, row, verdict, told, file))
    if runtime.tracer is not None:
        inferred = done - row.inference_s
        decoded = inferred - row.decode_s
        first = context.images == 1
        context.stages = {
            "queue": (context.received, decoded), "decode": (decoded, inferred), "inference": (inferred, done)
        } if first else None  # fmt: skip
        context.attributes = {
            "tailguard.label": label, "tailguard.decision": verdict.decision, "tailguard.p_value": verdict.p_value,
            **({"tailguard.reason": verdict.reason} if verdict.reason else {}),
        } if first else None  # fmt: skip
    return Decided(row, verdict, context.received - context.started, queue_s, done - context.started, node)


def count_row(admitted: Admitted[Any], row: Row, done: float) -> float:
    """Count one image that the graph has answered, decided on or not; the seconds that it waited."""
    context, metrics = admitted.context, admitted.context.runtime.metrics
    assert context.received is not None  # admit has set it
    queue_s = max(0.0, done - context.received - row.decode_s - row.inference_s)
    context.decided = done if context.decided is None else max(done, context.decided)
    context.images += 1
    context.count_image("answered")
    metrics.decode_seconds.observe(row.decode_s)
    metrics.queue_seconds.observe(queue_s)
    return queue_s


def _entry(
    ledger: Ledger, admitted: Admitted[Any], position: int, row: Row, verdict: Verdict, told: str | None,
    file: bytes | None,
) -> Entry:  # fmt: skip
    """The row for the ledger, with file and embedding if they are to be kept. Hashing and writing are its threads'."""
    context = admitted.context
    choice = NOT_KEPT if ledger.policy is None or file is None else ledger.policy.choose(verdict.decision)
    kept = choice.keep_probability is not None
    return Entry(
        time(),
        context.request_id,
        position,
        admitted.model.manifest,
        row.scores,
        verdict,
        None if context.key is None else context.key.name,
        file if kept else None,
        context.client_id,
        admitted.parameters.is_default,
        packed(row.embedding) if kept else None,
        choice.sample_rate,
        choice.keep_probability,
        told,
    )
