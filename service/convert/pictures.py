"""The images on which a converted graph is compared: those of a person, the bundle's own, and alterations of them.

The alterations are turned, shifted, darkened or brightened, noisy, and half of them blended with another image: so that
many lie near a threshold, where a small difference shows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import files, images
from service.contract.bundle import Manifest
from service.convert.errors import ConvertError
from service.errors import TailGuardError

LEAST_IMAGES = 400  # fewer are filled up with alterations
MOST_IMAGES = 1000  # of a person's: evenly spaced among more
MAX_PIXELS = 100_000_000

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """`pixels` uint8 [N, H, W, 3] as the graph takes them, and the shorter side of each upload, px."""

    pixels: Pixels
    sides_px: list[int]
    golden: int  # of the bundle, which come first
    given: int  # of a person, which follow
    altered: int

    def described(self) -> dict[str, int]:
        """For the record of a conversion."""
        return {"all": len(self.pixels), "golden": self.golden, "given": self.given, "altered": self.altered}


def gathered(folder: Path, manifest: Manifest, given: Path | None) -> Pictures:
    """The golden examples of the bundle in `folder`, the images below `given`, and alterations up to LEAST_IMAGES.

    Raises ConvertError where there is no image, or one of them cannot be read, by name.
    """
    own = [folder / example.file for example in manifest.golden]
    more = [] if given is None else _spaced(_found(given))
    if not own and not more:
        raise ConvertError(f"{folder} has no example images to compare on: name a folder of photographs with --images")
    shown, sides = zip(*(_read(path, manifest) for path in (*own, *more)), strict=True)
    pixels = np.stack(shown)
    missing = max(0, LEAST_IMAGES - len(pixels))
    chosen, altered = alterations(pixels, missing)
    every = [*sides, *(sides[k] for k in chosen)]
    return Pictures(np.concatenate([pixels, altered]), every, len(own), len(more), missing)


def alterations(pixels: Pixels, count: int) -> tuple[list[int], Pixels]:
    """`count` images made of `pixels` [N, H, W, 3]: which one each was made of, and they. Always the same."""
    random = np.random.default_rng(0)
    chosen: list[int] = []
    made = np.empty((count, *pixels.shape[1:]), np.uint8)
    for k in range(count):
        first, second = random.integers(len(pixels), size=2)
        image = pixels[first].astype(np.float32)
        if random.random() < 0.5:
            image += random.uniform(0.1, 0.5) * (pixels[second].astype(np.float32) - image)
        if random.random() < 0.5:
            image = image[:, ::-1]
        most = max(1, len(image) // 8)
        image = np.roll(image, random.integers(-most, most + 1, size=2), axis=(0, 1))
        image = image * random.uniform(0.4, 1.3) + random.normal(0, random.uniform(0, 12), image.shape)
        made[k] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        chosen.append(int(first))
    return chosen, made


def _found(given: Path) -> list[Path]:
    if not given.is_dir():
        raise ConvertError(f"--images {given} is no folder: name one that holds photographs")
    found = [Path(path) for path in files.find(given).paths]
    if not found:
        raise ConvertError(f"--images {given} holds no image: name a folder that holds photographs")
    return found


def _spaced(found: list[Path]) -> list[Path]:
    if len(found) <= MOST_IMAGES:
        return found
    return [found[k] for k in np.linspace(0, len(found) - 1, MOST_IMAGES).astype(int)]


def _read(path: Path, manifest: Manifest) -> tuple[Pixels, int]:
    try:
        loaded = images.load(path.read_bytes(), manifest.input, max_pixels=MAX_PIXELS)
    except (OSError, TailGuardError) as error:
        raise ConvertError(f"{path} cannot be read: {error}: put it right, or take it out of the folder") from error
    return loaded.pixels, min(loaded.width_px, loaded.height_px)
