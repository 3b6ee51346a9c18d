"""service/contract/images/profiles.py: embedded colour profiles, against the formulas of their colour spaces."""

import struct
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.contract.images import png, profiles
from service.contract.images.profiles import P3_PRIMARIES, SRGB_PRIMARIES, grey_profile, rgb_profile
from service.errors import InvalidImage
from tests.fuzz.seeds import with_chunks
from tests.service.contract.test_images import PICTURE, RGB, encode, read

ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PROPHOTO = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
LCMS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def linear(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def coded(values: NDArray[Any]) -> NDArray[np.float64]:
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def xyz_of(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    xy = np.reshape(primaries, (4, 2))
    full = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    return np.asarray(full[:, 1:] * np.linalg.solve(full[:, 1:], full[:, 0]))


def stored(primaries: tuple[float, ...], gamma: float | None) -> Image.Image:
    """PICTURE, made less colourful so that every space holds it, in the values of another space."""
    light = linear((PICTURE * 0.5 + 60) / 255) @ TO_XYZ.T @ np.linalg.inv(xyz_of(primaries)).T
    values = coded(light) if gamma is None else np.clip(light, 0, 1) ** (1 / gamma)
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(("primaries", "gamma"), [(P3_PRIMARIES, None), (ADOBE, 2.2), (SRGB_PRIMARIES, 1.8)])
def test_colours_of_a_profile_become_those_of_srgb(
    form: str, primaries: tuple[float, ...], gamma: float | None
) -> None:
    options: dict[str, Any] = {
        "PNG": {},
        "TIFF": {},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.get(form, {"quality": 100, "subsampling": 0})
    data = encode(stored(primaries, gamma), form, icc_profile=rgb_profile(primaries, gamma), **options)
    np.testing.assert_allclose(
        read(data).pixels.astype(int), PICTURE * 0.5 + 60, atol=3 if form in ("PNG", "TIFF") else 8
    )


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_profile_of_one_curve(gamma: float) -> None:
    """A linear one, and ProPhoto's, whose white is another one than that of sRGB."""
    ramp = np.tile(np.linspace(40, 255, 16).astype(np.uint8), (12, 1))
    found = read(encode(Image.fromarray(ramp), "PNG", icc_profile=grey_profile(gamma))).pixels
    np.testing.assert_allclose(found[..., 0], 255 * coded((ramp / 255) ** gamma), atol=1)
    colour = read(encode(Image.fromarray(np.stack([ramp] * 3, -1)), "PNG", icc_profile=rgb_profile(PROPHOTO, gamma)))
    np.testing.assert_allclose(colour.pixels[..., 0], 255 * coded((ramp / 255) ** gamma), atol=2)


def test_profiles_of_alpha_palettes_and_grey_pictures() -> None:
    p3 = rgb_profile(P3_PRIMARIES)
    red = Image.new("RGB", (16, 12), (200, 40, 40))
    wanted = read(encode(red, "PNG", icc_profile=p3)).pixels[0, 0]
    assert wanted[0] > 205
    for image in (red.convert("RGBA"), red.quantize(4)):
        np.testing.assert_allclose(read(encode(image, "PNG", icc_profile=p3)).pixels[0, 0].astype(int), wanted, atol=1)
    half = red.convert("RGBA")
    half.putalpha(128)
    on_white = read(encode(half, "PNG", icc_profile=p3)).pixels[0, 0]
    np.testing.assert_allclose(on_white.astype(int), wanted * (128 / 255) + 127, atol=2)
    grey = Image.new("LA", (16, 12), (100, 255))
    assert read(encode(grey, "PNG", icc_profile=grey_profile(1.0))).pixels[0, 0].tolist() == [168] * 3


def test_cmyk_profile_is_used() -> None:
    """Built for the test: one table from CMYK to Lab, by which black ink alone takes light, evenly to the eye."""
    cmyk = Image.new("CMYK", (16, 12), (0, 255, 255, 0))
    assert read(encode(cmyk, "TIFF")).pixels[0, 0].tolist() == [255, 0, 0]
    head = struct.pack(">4sI4B9i2H", b"mft2", 0, 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536, 2, 2)
    straight, paper, ink = struct.pack(">2H", 0, 65535), (0xFF00, 0x8000, 0x8000), (0, 0x8000, 0x8000)
    table = head + straight * 4 + (struct.pack(">3H", *paper) + struct.pack(">3H", *ink)) * 8 + straight * 3
    profile = profiles._profile(b"CMYK", {b"A2B0": table, b"wtpt": profiles._xyz(profiles.D50)})
    press = bytearray(profile.replace(b"mntrCMYKXYZ ", b"prtrCMYKLab ", 1))
    press[8:12] = b"\x02\x40\0\0"
    for form in ("TIFF", "JPEG"):
        for black, wanted in ((0, 255), (128, 118), (255, 0)):  # half of the ink: L* = 50, which is 119 in sRGB
            inked = Image.new("CMYK", (16, 12), (0, 255, 255, black))
            found = read(encode(inked, form, icc_profile=bytes(press))).pixels[0, 0]
            np.testing.assert_allclose(found.astype(int), wanted, atol=3)


@pytest.mark.parametrize("profile", [LCMS_SRGB, rgb_profile(), rgb_profile(SRGB_PRIMARIES), b"damaged", b"\0" * 200])
def test_srgb_in_any_form_and_damaged_profiles_leave_pixels_alone(profile: bytes) -> None:
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read(encode(RGB, form, icc_profile=profile)).pixels, PICTURE)
    damaged = bytearray(rgb_profile(P3_PRIMARIES))
    damaged[60:] = damaged[60:][::-1]
    np.testing.assert_array_equal(read(encode(RGB, "PNG", icc_profile=bytes(damaged))).pixels, PICTURE)


def test_profile_of_other_channels_than_the_image_is_none() -> None:
    np.testing.assert_array_equal(read(encode(RGB, "PNG", icc_profile=grey_profile(1.0))).pixels, PICTURE)
    cmyk = Image.new("CMYK", (16, 12), (0, 255, 255, 0))
    assert read(encode(cmyk, "TIFF", icc_profile=rgb_profile(P3_PRIMARIES))).pixels[0, 0].tolist() == [255, 0, 0]


def test_large_profile_is_refused() -> None:
    data = encode(RGB, "TIFF", icc_profile=rgb_profile(P3_PRIMARIES) + bytes(profiles.MAX_PROFILE_BYTES))
    with pytest.raises(InvalidImage, match="the colour profile has 4194"):
        read(data)


def test_cache_is_bounded_and_safe_in_threads() -> None:
    def work(first: int) -> None:
        for i in range(first, first + 40):
            profiles.to_srgb(RGB.copy(), rgb_profile(P3_PRIMARIES, 1.5 + i / 100))

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(profiles._cache) == profiles.MAX_CACHED


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def corners(primaries: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in primaries))


def test_gamma_of_a_png() -> None:
    data = encode(RGB, "PNG")
    exact = 255 * (PICTURE / 255) ** (0.45455 / 1.0)
    np.testing.assert_allclose(read(with_chunks(data, gamma(1.0))).pixels, exact, atol=2)
    grey = encode(Image.fromarray(PICTURE[..., 0]), "PNG")
    np.testing.assert_allclose(read(with_chunks(grey, gamma(1.0))).pixels[..., 0], exact[..., 0], atol=2)
    for chunks in ([gamma(0.45455)], [gamma(0.45455), corners(SRGB_PRIMARIES)], [(b"sRGB", b"\0"), gamma(1.0)]):
        np.testing.assert_array_equal(read(with_chunks(data, *chunks)).pixels, PICTURE)


def test_primaries_and_code_points_of_a_png_come_to_the_same_as_its_profile() -> None:
    data, p3 = encode(stored(P3_PRIMARIES, None), "PNG"), (gamma(0.45455), corners(P3_PRIMARIES))
    for chunks in (p3, [(b"cICP", bytes([12, 13, 0, 1]))]):
        np.testing.assert_allclose(read(with_chunks(data, *chunks)).pixels.astype(int), PICTURE * 0.5 + 60, atol=5)
    none = [gamma(0.45455), corners((0,) * 8)]
    np.testing.assert_array_equal(read(with_chunks(encode(RGB, "PNG"), *none)).pixels, PICTURE)
    with pytest.raises(InvalidImage, match=r"high dynamic range \(PQ\)"):
        read(with_chunks(data, (b"cICP", bytes([9, 16, 0, 1]))))
    assert png.coded_colours(2, 2, "PNG") is None  # unspecified


def test_profile_of_a_bmp_of_version_5() -> None:
    image = stored(P3_PRIMARIES, None)
    pixels = np.asarray(image)[::-1, :, ::-1].tobytes()
    profile = rgb_profile(P3_PRIMARIES)
    head = struct.pack("<IiiHHIIiiII", 124, 16, 12, 1, 24, 0, len(pixels), 0, 0, 0, 0) + bytes(16) + b"DEBM"
    head = head.ljust(112, b"\0") + struct.pack("<III", 124 + len(pixels), len(profile), 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + head + pixels + profile
    np.testing.assert_allclose(read(data).pixels.astype(int), PICTURE * 0.5 + 60, atol=3)
