"""The measurement finds a score that reads traces of resizing alone, and clears one that does not."""

import numpy as np
from PIL import Image

from tests.resizing.measure import WAYS, aurocs, resized
from training.data.readers import Images, Pixels
from training.evaluation.predict import Outputs

SHARP = "sharpness"


def scenes(count: int, seed: int) -> Pixels:
    """Noise at 32 px: as sharp as pixels can be."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def shrunk(pixels: Pixels) -> Pixels:
    """The same kind of picture, brought to 32 px from 64."""
    large = [Image.fromarray(i).resize((64, 64), Image.Resampling.BILINEAR) for i in pixels]
    return np.stack([np.asarray(i.resize((32, 32), Image.Resampling.BILINEAR)) for i in large])


def by_sharpness(images: Images) -> Outputs:
    blur = -np.abs(np.diff(images.astype(np.float32), axis=2)).mean(axis=(1, 2, 3))
    return Outputs(np.ones((len(images), 1), np.float32), {SHARP: blur})


def by_brightness(images: Images) -> Outputs:
    return Outputs(np.ones((len(images), 1), np.float32), {SHARP: images.mean(axis=(1, 2, 3), dtype=np.float32)})


def test_as_they_are_changes_nothing() -> None:
    pixels = scenes(3, 0)
    assert resized(pixels, "as they are") is pixels
    for way in WAYS:
        assert resized(pixels, way).shape == pixels.shape


def test_an_eye_for_resizing_is_found_and_a_look_at_the_content_is_not_blamed() -> None:
    inside, outside = scenes(60, 1), shrunk(scenes(60, 2))
    eye = aurocs(by_sharpness, SHARP, inside, {"shrunk": outside})
    assert eye["as they are"]["shrunk"] == 1.0
    brighter = np.clip(inside.astype(int) + 60, 0, 255).astype(np.uint8)
    content = aurocs(by_brightness, SHARP, inside, {"brighter": brighter})
    assert all(values["brighter"] > 0.99 for values in content.values())
