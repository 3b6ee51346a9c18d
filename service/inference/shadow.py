"""A second bundle that classifies a share of the traffic for comparison only: how often does it decide otherwise?

It has one thread of the lowest priority and a short queue; images that do not fit are counted as skipped, so the model
in service never waits for it.
"""

import asyncio
import random
from pathlib import Path

import structlog

from service.contract.decision import decide_row
from service.errors import SettingsError, TailGuardError
from service.inference import model
from service.inference.model import Deciding
from service.inference.pipeline import Row
from service.observe.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger()


class Shadow:
    """Compares its own decisions with those that were answered. `offer` costs a request one random number."""

    def __init__(self, folder: Path, settings: Settings, metrics: Metrics, deciding: Deciding) -> None:
        """Raises as model.load."""
        self.model = model.load(folder, settings, metrics, deciding, shadow=True)
        self._share = settings.shadow_share
        self._timeout_s = settings.request_timeout_s
        self._images = metrics.shadow_images
        self._tasks: set[asyncio.Task[None]] = set()
        self._draw = random.Random(0).random
        log.info("shadow ready", share=self._share, **self.model.described())

    def offer(self, data: bytes, label: str, decision: str) -> None:
        """Compare with `label` and `decision`, which were answered, for a random share of the images."""
        if self._draw() >= self._share:
            return
        if self.model.pipeline.held >= self.model.pipeline.queue_images:
            self._images.labels("skipped").inc()
            return
        task = asyncio.get_running_loop().create_task(self._compare(data, label, decision))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def follow(self, deciding: Deciding) -> None:
        """Decide from now on as the deployment does, as far as the shadow's bundle has that operating point."""
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

    async def _compare(self, data: bytes, label: str, decision: str) -> None:
        pipeline = self.model.pipeline
        try:
            with pipeline.reserve(1):
                row = await pipeline.submit(data, asyncio.get_running_loop().time() + self._timeout_s)
        except TailGuardError:
            self._images.labels("failed").inc()
            return
        self._images.labels(self._outcome(row, label, decision)).inc()

    def _outcome(self, row: Row, label: str, decision: str) -> str:
        manifest = self.model.manifest
        verdict = decide_row(manifest, row.probabilities, row.scores, self.model.operating_point, self.model.scope)
        if verdict.decision != decision:
            return "decision-differs"
        return "same" if manifest.classes[verdict.class_index].name == label else "label-differs"
