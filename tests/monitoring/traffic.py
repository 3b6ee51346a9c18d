"""Images for a service on the embedded bundle whose scores are spread as calibration's were, and images that are not.

Six examples are no stream: repeated, they would be a drift of their own. So thousands of variants of them are scored
first, and for each score of calibration the variant with the nearest score, and the decision due to it, is sent.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import bundle, decision
from service.inference.engine import Engine
from tests.live import png

VARIANTS = 4000
IMAGES_PER_REQUEST = 16
SCORE_CHUNK = 100

Images = NDArray[np.uint8]


def in_distribution(folder: Path, count: int, seed: int = 0) -> Images:
    """uint8 [count, H, W, 3]: scores and share of rejected ones as at calibration, in random order."""
    random = np.random.default_rng(seed)
    manifest = bundle.read(folder)
    variants = _variants(folder, manifest, random)
    engine = Engine(folder, manifest)
    answers = [engine.run(variants[i : i + SCORE_CHUNK]) for i in range(0, len(variants), SCORE_CHUNK)]
    engine.close()
    scores = np.concatenate([a.scores[manifest.deciding_score] for a in answers])
    predicted = np.concatenate([a.probabilities.argmax(1) for a in answers])
    point, scope = manifest.operating_points[manifest.default_operating_point], manifest.threshold_scope
    limits = np.array([decision.threshold(point, scope, c.group) for c in manifest.classes])[predicted]
    reference = np.array(manifest.calibration.id_scores)
    wanted = np.quantile(reference, (np.arange(count) + 0.5) / count)
    due = point.cost(scope).calibration.id_rejected
    rejected = wanted > np.quantile(reference, 1 - due)
    distance = np.abs(scores[None] - wanted[:, None]) + 10.0 * ((scores > limits)[None] != rejected[:, None])
    return variants[random.permutation(distance.argmin(1))]


def _variants(folder: Path, manifest: bundle.Manifest, random: np.random.Generator) -> Images:
    """The bundle's examples turned, shifted, mixed, in another light and with noise; many only a little so."""
    size = (manifest.input.width_px, manifest.input.height_px)
    paths = [p for p in sorted((folder / "examples").glob("*.png")) if not p.name.startswith("ood-")]
    bases = [np.asarray(Image.open(p).convert("RGB").resize(size, Image.Resampling.BILINEAR), float) for p in paths]
    found = []
    for _ in range(VARIANTS):
        first, second = random.integers(len(bases), size=2)
        much = random.random() ** 2
        share = 0.6 * much * random.random()
        pixels = (1 - share) * bases[first] + share * bases[second]
        pixels = pixels[:, :: random.choice([-1, 1])]
        pixels = np.roll(pixels, random.integers(-2, 3, size=2), (0, 1))
        pixels = 128 + (pixels - 128) * (1 + 0.5 * much * random.uniform(-1, 1)) + 40 * much * random.uniform(-1, 1)
        pixels += random.normal(0, 20 * much, pixels.shape)
        found.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.stack(found)


def outliers(count: int, seed: int = 0) -> Images:
    """uint8 [count, 32, 32, 3] of noise, fine and coarse."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        cell = int(random.choice([1, 2, 4, 8]))
        coarse = random.integers(0, 256, (32 // cell, 32 // cell, 3), np.uint8)
        found.append(coarse.repeat(cell, 0).repeat(cell, 1))
    return np.stack(found)


class Traffic:
    """Sends images round and round from a thread of its own, and keeps the deciding scores that were answered.

    What is sent may be changed in between. Leaving the context ends it and raises what went wrong.
    """

    def __init__(self, client: httpx.Client, images: Images, pause_s: float = 0.0) -> None:
        self.scores: list[float] = []
        self._client = client
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: Exception | None = None
        self.send(images)

    def send(self, images: Images) -> None:
        """From the next request on, these."""
        self._files = [png(pixels) for pixels in images]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        begin = 0
        try:
            while not self._ended.wait(self._pause_s):
                files = self._files
                chosen = [files[(begin + i) % len(files)] for i in range(IMAGES_PER_REQUEST)]
                begin = (begin + IMAGES_PER_REQUEST) % len(files)
                parts = [("files", (f"{i}.png", image, "image/png")) for i, image in enumerate(chosen)]
                answer = self._client.post("/classify/batch", files=parts).raise_for_status()
                self.scores += [r["answer"]["deciding_score"]["value"] for r in answer.json()["results"]]
        except Exception as error:
            self._error = error
