"""A second bundle that classifies a share of the traffic for comparison only: how often does it decide otherwise?

What becomes of an image, SHADOW_OUTCOMES:

    same              accepted by both, under the same name
    label-differs     accepted by both, under different names
    decision-differs  accepted, and the shadow refuses it
    both-refuse       whatever name either would give it
    taught            refused, and accepted under a class that the shadow was taught by people who reviewed images, or
                      that the model in force lacks
    newly-accepted    refused, and accepted under any other class

It has one thread of the lowest priority and a short queue; images that do not fit are counted as skipped, so the model
in service never waits for it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Container

import structlog

from service.contract.bundle import Manifest
from service.contract.decision import Verdict, decide_row
from service.errors import SettingsError, TailGuardError
from service.inference.model import Deciding, Model
from service.inference.rows import Row
from service.observe.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger()


class Shadow:
    """Compares its own decisions with those that were answered. `offer` costs a request one random number."""

    def __init__(self, loaded: Model, settings: Settings, metrics: Metrics, share: float | None = None) -> None:
        """`loaded` as a shadow, for a `share` of the images, by default the settings'."""
        self.model = loaded
        self.taught = taught_classes(loaded.manifest)
        self._share = settings.shadow_share if share is None else share
        self.seen: Counter[str] = Counter()  # images by outcome, since what answers is what it is now
        self._timeout_s = settings.request_timeout_s
        self._images = metrics.shadow_images
        self._tasks: set[asyncio.Task[None]] = set()
        self._draw = random.Random(0).random
        log.info("shadow ready", share=self._share, **self.model.described())

    @property
    def share(self) -> float:
        """Of the images, that it sees."""
        return self._share

    def offer(self, data: bytes, label: str, answered: Verdict, known: Container[str]) -> None:
        """Compare with `label` and the verdict, which were answered by a model of the `known` classes, for a random
        share of the images."""
        if self._draw() >= self._share:
            return
        if self.model.pipeline.held >= self.model.pipeline.queue_images:
            self._count("skipped", self.seen)
            return
        task = asyncio.get_running_loop().create_task(self._compare(data, label, answered, known, self.seen))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def follow(self, deciding: Deciding) -> None:
        """Decide from now on as the deployment does, as far as the shadow's bundle has that operating point. What it
        was compared with until now, another bundle or operating point, says nothing of what answers from now on."""
        self.seen = Counter()
        current = self.model
        try:
            point, scope = deciding.within(current.folder, current.manifest)
        except SettingsError as error:
            point, scope = current.manifest.default_operating_point, deciding.scope or current.manifest.threshold_scope
            log.warning("the shadow decides by its own operating point", operating_point=point, reason=str(error))
        self.model = current.deciding_by(point, scope)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.model.close()

    async def row(self, data: bytes) -> Row:
        """What the graph gives for a file, in its turn behind the traffic. Raises as Pipeline.submit."""
        pipeline = self.model.pipeline
        return await pipeline.submit_when_free(data, asyncio.get_running_loop().time() + self._timeout_s)

    def verdict(self, row: Row) -> Verdict:
        """The decision on a row, at the shadow's operating point."""
        return decide_row(
            self.model.manifest, row.probabilities, row.scores, self.model.operating_point, self.model.scope,
            row.quality, min(row.width_px, row.height_px),
        )  # fmt: skip

    def _count(self, outcome: str, seen: Counter[str]) -> None:
        self._images.labels(outcome).inc()
        seen[outcome] += 1

    async def _compare(
        self, data: bytes, label: str, answered: Verdict, known: Container[str], seen: Counter[str]
    ) -> None:
        pipeline = self.model.pipeline
        try:
            with pipeline.reserve(1):
                row = await pipeline.submit(data, asyncio.get_running_loop().time() + self._timeout_s)
        except TailGuardError:
            self._count("failed", seen)
            return
        self._count(self._outcome(row, label, answered, known), seen)

    def _outcome(self, row: Row, label: str, answered: Verdict, known: Container[str]) -> str:
        verdict = self.verdict(row)
        name = self.model.manifest.classes[verdict.class_index].name
        if answered.decision == "accept":
            if verdict.decision == "reject":
                return "decision-differs"
            return "same" if name == label else "label-differs"
        if verdict.decision == "reject":
            both = verdict.reason and answered.reason  # a bundle that tells refusals apart against one that does not
            return "other-reason" if both and verdict.reason != answered.reason else "both-refuse"
        return "taught" if name not in known or name in self.taught else "newly-accepted"


def taught_classes(manifest: Manifest) -> frozenset[str]:
    """Classes of which a bundle was taught images that people reviewed, as its manifest says."""
    added = manifest.provenance.added or {}
    counts = {**added.get("new_classes", {}), **added.get("known_classes", {})}
    return frozenset(name for name, sides in counts.items() if sides.get("train"))
