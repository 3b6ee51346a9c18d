"""service/contract/images/fitting.py: which part of an image the model sees, and by which filter."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.contract.bundle import Input
from service.contract.images import decoded_bytes, fit, load
from service.contract.images.fitting import box
from service.contract.images.limits import draft_size


def target(side: int = 8, **options: Any) -> Input:
    given: dict[str, Any] = {"height_px": side, "width_px": side, "fit": "crop", "resampling": "bilinear"}
    return Input(**given | options)


def picture(width: int, height: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / 60 + y / 90 + phase) for phase in (0, 1, 2)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((400, 200), {"fit": "stretch"}, None),
        ((400, 200), {}, (100, 0, 300, 200)),
        ((400, 200), {"crop_share": 0.5}, (150, 50, 250, 150)),
        ((200, 400), {"crop_share": 0.875}, (12.5, 112.5, 187.5, 287.5)),
        ((100, 100), {"crop_share": 0.8}, (10, 10, 90, 90)),
        ((400, 200), {"width_px": 16, "crop_share": 0.5}, (100, 50, 300, 150)),  # a wide target keeps its shape
        ((9, 8), {}, (0, 0, 8, 8)),  # size alone: whole pixels
        ((17, 16), {"crop_share": 0.5}, (4, 4, 12, 12)),
    ],
)
def test_the_part_that_is_seen(
    size: tuple[int, int], options: dict[str, Any], expected: tuple[float, ...] | None
) -> None:
    found = box(size, target(**options))
    assert found is None if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(512, 384), (300, 451)])
def test_as_a_resize_and_a_centre_crop(resampling: str, width: int, height: int) -> None:
    """timm's way: short side to floor(size / crop_pct), then the middle; here in one step, without two roundings."""
    side, share = 112, 0.875
    image = Image.fromarray(picture(width, height))
    short = int(side / share)
    scale = short / min(width, height)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling[resampling.upper()])
    left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
    expected = np.asarray(resized.crop((left, top, left + side, top + side)), float)
    found = fit(image, target(side, crop_share=share, resampling=resampling))
    assert np.abs(found - expected).mean() < 3  # at most half a pixel of shift
    whole = np.asarray(fit(image, target(side, resampling=resampling)), float)
    assert np.abs(whole - expected).mean() > 8


def test_as_timm_itself() -> None:
    """The very transform of a timm model; skipped where timm is not installed."""
    from training.network.backbones import import_timm
    from training.network.preprocessing import BackboneError

    try:
        timm = import_timm()
    except BackboneError as error:
        pytest.skip(str(error))
    chosen = timm.data.create_transform((3, 112, 112), interpolation="bicubic", crop_pct=0.875, mean=(0,) * 3,
                                        std=(1,) * 3)  # fmt: skip
    for width, height in ((512, 384), (300, 451)):
        image = Image.fromarray(picture(width, height))
        expected = 255 * chosen(image).permute(1, 2, 0).numpy()
        found = fit(image, target(112, crop_share=0.875, resampling="bicubic"))
        assert np.abs(found - expected).mean() < 3


def test_an_image_of_the_right_size_is_still_cropped() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 200
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), target()), pixels)
    seen = fit(Image.fromarray(pixels), target(crop_share=0.5))
    assert (seen[2:6, 2:6] == 200).all()
    assert seen.min() > 100  # at its edge a pixel averages over what lies just outside, as in a resize before a crop


def test_filters_differ_at_an_edge() -> None:
    """Bilinear never leaves the range of the pixels; bicubic and Lanczos overshoot, Lanczos on both sides twice."""
    step = np.full((16, 16, 3), 50, np.uint8)
    step[:, 8:] = 200
    rows = {name: fit(Image.fromarray(step), target(64, resampling=name))[0, :, 0] for name in
            ("bilinear", "bicubic", "lanczos")}  # fmt: skip
    assert (rows["bilinear"].min(), rows["bilinear"].max()) == (50, 200)
    assert rows["bicubic"].min() < 50 < 200 < rows["bicubic"].max()
    assert not np.array_equal(rows["bicubic"], rows["lanczos"])


def test_a_reduced_jpeg_keeps_enough_pixels_of_a_small_part() -> None:
    """Twice the target inside the part that is seen: half of the short side has 2 x 100 pixels, so all of it 400."""
    assert draft_size(3200, 1600, target(100)) == (400, 200)
    assert draft_size(3200, 1600, target(100, crop_share=0.5)) == (800, 400)
    buffer = BytesIO()
    Image.fromarray(picture(3200, 1600)).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    # colour, 4 bytes a pixel: decoded at an eighth and at a quarter of both sides
    assert decoded_bytes(data, target(100)) == 4 * 400 * 200
    assert decoded_bytes(data, target(100, crop_share=0.5)) == 4 * 800 * 400
    found = load(data, target(100, crop_share=0.5), max_pixels=10**8).pixels
    part = Image.fromarray(picture(3200, 1600)).resize((100, 100), Image.Resampling.BILINEAR, (1200, 400, 2000, 1200))
    assert np.abs(found - np.asarray(part, float)).mean() < 2


def test_manifests_from_before_crop_the_whole() -> None:
    old = Input.model_validate({"height_px": 8, "width_px": 8, "fit": "stretch", "resampling": "bilinear"})
    assert old.crop_share == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_share": 0}, "greater than 0"),
        ({"crop_share": 1.1}, "less than or equal to 1"),
        ({"fit": "stretch", "crop_share": 0.9}, "shows the whole image"),
        ({"resampling": "nearest"}, "bilinear"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        target(**options)
