"""The page's resize gives the bytes that the service's gives, by Pillow; for any size, fit, resampling and alpha."""

import base64
import itertools
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, __version__

from service.contract.bundle import Input
from service.contract.images.fitting import box, fit

SIZES = [
    (224, 299), (256, 224), (299, 224), (8, 8), (1, 1), (640, 480), (480, 640), (33, 700), (700, 33), (224, 224),
    (160, 200), (500, 375),
]  # fmt: skip
STRIPS = [(1100, 1400), (600, 2400)]  # more than a strip of the page; the second begins with the height
TARGETS = [
    {"height_px": 224, "width_px": 224, "fit": "crop", "crop_share": 0.875},
    {"height_px": 224, "width_px": 224, "fit": "crop", "crop_share": 1},
    {"height_px": 32, "width_px": 48, "fit": "stretch", "crop_share": 1},
    {"height_px": 96, "width_px": 64, "fit": "crop", "crop_share": 0.9},
]
RESAMPLINGS = ("bilinear", "bicubic", "lanczos")
FIT = """async ([width, height, data, target]) => {
  const {fit, box} = await import("/pixels.js"), all = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const read = (left, top, wide, high) => {
    const part = new Uint8ClampedArray(4 * wide * high);
    for (let y = 0; y < high; y++) {
      const from = 4 * ((top + y) * width + left);
      part.set(all.subarray(from, from + 4 * wide), 4 * y * wide);
    }
    return part;
  };
  let text = "";
  for (const value of fit({width, height, read}, target)) text += String.fromCharCode(value);
  return [btoa(text), box(width, height, target)];
}"""
VERTICAL_FIRST = int(__version__.partition(".")[0]) >= 13  # earlier versions of Pillow always begin with the width


def by_page(page: Any, rgba: np.ndarray, target: dict[str, Any]) -> tuple[np.ndarray, list[float]]:
    height, width = rgba.shape[:2]
    text, seen = page.evaluate(FIT, [width, height, base64.b64encode(rgba.tobytes()).decode(), target])
    pixels = np.frombuffer(base64.b64decode(text), np.uint8)
    return pixels.reshape(target["height_px"], target["width_px"], 3), seen


@pytest.mark.skipif(not VERTICAL_FIRST, reason="the page resizes as Pillow 13 does")
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize(
    "target", TARGETS, ids=lambda t: f"{t['fit']}{t['height_px']}x{t['width_px']}-{t['crop_share']}"
)
def test_the_same_bytes_as_pillow(scripts: Any, target: dict[str, Any], alpha: bool) -> None:
    rng = np.random.default_rng(3)
    kinds = itertools.cycle(RESAMPLINGS)
    sizes = SIZES + [tuple(rng.integers(1, 500, 2).tolist()) for _ in range(6)]
    for (width, height), resampling in zip(sizes, kinds, strict=False):
        rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if not alpha:
            rgba[..., 3] = 255
        image = Image.fromarray(rgba).convert("RGBa") if alpha else Image.fromarray(rgba[..., :3])
        given = target | {"resampling": resampling}
        pixels, seen = by_page(scripts, rgba, given)
        wanted = fit(image, Input.model_validate(given))
        assert np.array_equal(pixels, wanted), (width, height, given, np.abs(pixels.astype(int) - wanted).max())
        assert tuple(seen) == (box((width, height), Input.model_validate(given)) or (0, 0, width, height))


@pytest.mark.skipif(not VERTICAL_FIRST, reason="the page resizes as Pillow 13 does")
@pytest.mark.parametrize("size", STRIPS)
def test_a_large_picture_in_strips(scripts: Any, size: tuple[int, int]) -> None:
    target = TARGETS[0] | {"resampling": "bicubic"}
    rgba = np.random.default_rng(4).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    pixels, _ = by_page(scripts, rgba, target)
    assert np.array_equal(pixels, fit(Image.fromarray(rgba).convert("RGBa"), Input.model_validate(target)))


LOADED = """async ([data, target]) => {
  const {loaded} = await import("/decode.js"), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const {pixels} = await loaded(new Blob([bytes]), target);
  return btoa(String.fromCharCode(...pixels));
}"""


@pytest.mark.skipif(not VERTICAL_FIRST, reason="the page resizes as Pillow 13 does")
@pytest.mark.parametrize("size", [(70_000, 40), (40, 70_000)], ids=["wide", "high"])
def test_a_picture_longer_than_a_canvas_can_be(scripts: Any, size: tuple[int, int]) -> None:
    """Chromium draws nothing on a canvas of more than 65,535 pixels, without an error: it was classified as white."""
    target = {"height_px": 32, "width_px": 48, "fit": "stretch", "crop_share": 1, "resampling": "bilinear"}
    coarse = np.random.default_rng(5).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image, file = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST), BytesIO()
    image.save(file, "PNG", compress_level=1)
    text = scripts.evaluate(LOADED, [base64.b64encode(file.getvalue()).decode(), target])
    pixels = np.frombuffer(base64.b64decode(text), np.uint8).reshape(32, 48, 3)
    assert np.array_equal(pixels, fit(image, Input.model_validate(target)))


@pytest.mark.parametrize("orientation", [1, 6, "xmp"])
def test_a_webp_that_is_to_be_turned_is_refused(scripts: Any, orientation: Any) -> None:
    """Chromium does not turn it, and the service does: the page decided on a picture that lay on its side."""
    image, file, exif = Image.new("RGB", (40, 30), (200, 10, 90)), BytesIO(), Image.Exif()
    exif[0x0112] = 1 if orientation == "xmp" else orientation
    xmp = b'<x tiff:Orientation="8"/>'
    if orientation == "xmp":
        image.save(file, "WEBP", lossless=True, xmp=xmp)
    else:
        image.save(file, "WEBP", lossless=True, exif=exif, xmp=xmp)  # what EXIF says holds
    given = [base64.b64encode(file.getvalue()).decode(), TARGETS[2] | {"resampling": "bilinear"}]
    if orientation == 1:
        assert scripts.evaluate(LOADED, given)
        return
    with pytest.raises(Exception, match="The WebP file is to be turned, as its metadata says"):
        scripts.evaluate(LOADED, given)


def test_both_orders_of_the_two_passes_are_among_the_sizes() -> None:
    first = {h > t["height_px"] and h - t["height_px"] > 2 * (w - t["width_px"]) for w, h in SIZES for t in TARGETS}
    assert first == {True, False}
