"""The pictures of the demo: variants of the bundle's examples that stand in for its calibration, and OOD by script.

Six drawings are no stream like the training data: cropped, flipped, brightened and blended at random they score quite
otherwise. So a large pool of such variants is scored, and each image sent stands in for one drawn from the real
calibration scores: the variant of the same predicted group with the nearest score. What the demo shows is the
monitoring of a stream, not the accuracy of the model.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.contract.bundle import Manifest
from service.inference.engine import Engine
from tests.drift.scores import GROUPS, Scored

Pixels = NDArray[np.uint8]
SIZE_PX = 32
BATCH_IMAGES = 100
NEAREST = 5  # one of so many, so that a stream does not repeat single images


def examples(bundle: Path, manifest: Manifest) -> list[Pixels]:
    """The bundle's example pictures of its own classes, uint8 [H, W, 3]."""
    paths = [bundle / "examples" / f"{info.name}.png" for info in manifest.classes]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths if path.exists()]


def crop(image: Pixels, random: np.random.Generator) -> NDArray[np.float64]:
    """A random crop of at least 70% of the side, flipped or not, at the size of the graph."""
    side = int(image.shape[0] * random.uniform(0.7, 1.0))
    top, left = random.integers(0, image.shape[0] - side + 1, 2)
    box = (int(left), int(top), int(left) + side, int(top) + side)
    small = np.asarray(Image.fromarray(image).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box), np.float64)
    return small[:, ::-1] if random.random() < 0.5 else small


def variant(drawings: list[Pixels], random: np.random.Generator) -> Pixels:
    """Two random crops blended, contrast and brightness changed, noise added: uint8 [32, 32, 3]."""
    first, second = (crop(drawings[i], random) for i in random.integers(len(drawings), size=2))
    blended = first + random.choice([0.0, random.uniform(0, 0.5)]) * (second - first)
    lit = (blended - 128) * random.uniform(0.7, 1.3) + 128 + random.uniform(-30, 30)
    return np.clip(lit + random.normal(0, random.uniform(0, 10), lit.shape), 0, 255).astype(np.uint8)


class Familiar:
    """In-distribution traffic from a `pool` of so many `images`, uint8 [P, 32, 32, 3], with their groups and scores."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        calibration: Scored,
        random: np.random.Generator,
        images: int,
    ) -> None:
        self._random = random
        drawings = examples(bundle, manifest)
        self.pool = np.stack([variant(drawings, random) for _ in range(images)])
        engine = Engine(bundle, manifest)
        parts = [engine.run(self.pool[i : i + BATCH_IMAGES]) for i in range(0, images, BATCH_IMAGES)]
        engine.close()
        group_of = np.array([GROUPS.index(info.group) for info in manifest.classes])
        self.score = np.concatenate([part.scores[manifest.deciding_score] for part in parts])
        self.group = group_of[np.concatenate([part.probabilities.argmax(1) for part in parts])]
        self._wanted = calibration.score, group_of[calibration.predicted]

    def next(self) -> Pixels:
        scores, groups = self._wanted
        drawn = self._random.integers(len(scores))
        same = np.flatnonzero(self.group == groups[drawn])
        order = np.argsort(np.abs(self.score[same] - scores[drawn]), kind="stable")
        chosen: Pixels = self.pool[same[order[self._random.integers(NEAREST)]]]
        return chosen


def noise(random: np.random.Generator) -> Pixels:
    return random.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def checkerboard(random: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIZE_PX, SIZE_PX)) // random.integers(2, 9)
    colours = random.integers(0, 256, (2, 3), dtype=np.uint8)
    board: Pixels = colours[(rows + columns) % 2]
    return board


def texture(random: np.random.Generator) -> Pixels:
    """Three waves of random direction, wavelength and colour."""
    y, x = np.indices((SIZE_PX, SIZE_PX))
    waves = np.zeros((SIZE_PX, SIZE_PX, 3))
    for _ in range(3):
        angle, length, phase = random.uniform(0, np.pi), random.uniform(3, 16), random.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
        waves += wave[..., None] * random.uniform(-1, 1, 3)
    return np.clip(waves * 60 + random.uniform(60, 200, 3), 0, 255).astype(np.uint8)


def letter(random: np.random.Generator) -> Pixels:
    """A letter or digit of random size, place and colours."""
    paper, ink = (tuple(int(v) for v in random.integers(0, 256, 3)) for _ in range(2))
    canvas = Image.new("RGB", (SIZE_PX, SIZE_PX), paper)
    sign = "ABCDEFGHJKLMNPRSTUVWXYZabdefghkmnqrt23456789"[random.integers(44)]
    at = tuple(int(v) for v in random.integers(12, 21, 2))
    ImageDraw.Draw(canvas).text(at, sign, ink, ImageFont.load_default(int(random.integers(18, 31))), anchor="mm")
    return np.asarray(canvas)


STRANGE = {"letters": letter, "noise": noise, "textures": texture, "checkerboards": checkerboard}


def strange(random: np.random.Generator) -> Pixels:
    """Out-of-distribution traffic: one of the four kinds at random, uint8 [32, 32, 3]."""
    return list(STRANGE.values())[random.integers(len(STRANGE))](random)
