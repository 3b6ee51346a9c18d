"""Which images are kept for review, and with what probability: the setting `keep`, and the audit sample beside it.

The sample is a share of all images, drawn without a look at them, so what is measured on it holds for the stream. Its
rate stands in each of its rows: rows from before a change of the setting keep their weight. What `keep` keeps is kept
with probability 1 as long as no image is counted as "limited".
"""

import random
import time
from typing import NamedTuple

from prometheus_client import Counter

from service.contract.decision import Decision
from service.settings import Settings

ROUNDING = 1e-6  # of an image: sums of times are not exact


class Choice(NamedTuple):
    """As in Entry: `keep_probability` None means not to keep, `sample_rate` None not to be in the sample."""

    sample_rate: float | None
    keep_probability: float | None


NOT_KEPT = Choice(None, None)


class Policy:
    """Called from the event loop; a choice takes about half a microsecond."""

    def __init__(self, settings: Settings, images: Counter) -> None:
        self._all, self._rejected = settings.keep == "all", settings.keep == "rejected"
        self._rate = settings.keep_sample or None
        self._apart_s = 1 / settings.keep_images_per_s
        self._burst_s = (settings.keep_burst_images - 1) * self._apart_s
        self._next_s = 0.0
        self._limited = images.labels("limited")
        self._draw = random.Random().random

    def choose(self, decision: Decision) -> Choice:
        """Whether to keep an image on which was decided so."""
        rate = self._rate if self._rate is not None and self._draw() < self._rate else None
        if (self._all or (self._rejected and decision == "reject")) and self._within_pace():
            return Choice(rate, 1.0)
        return Choice(rate, rate)

    def _within_pace(self) -> bool:
        """A token bucket: it holds `keep_burst_images` and fills at `keep_images_per_s`."""
        now = time.monotonic()
        at = max(self._next_s, now - self._burst_s)
        if at > now + ROUNDING * self._apart_s:
            self._limited.inc()
            return False
        self._next_s = at + self._apart_s
        return True
