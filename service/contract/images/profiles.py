"""Colour profiles: pixels of an image with an ICC profile, or with a PNG's gAMA and cHRM, to sRGB.

The conversion is LittleCMS's, through Pillow. Costs, in CPU time on a busy core: a profile that comes to sRGB within
TOLERANCE levels, 4 µs to find it in the cache; another is built once (5 ms, a press's 35 ms), and then takes 29 ns a
pixel (CMYK 63 ns). An absent, damaged or foreign profile (one of another number of channels than the image) means sRGB:
browsers do the same.
"""

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.errors import InvalidImage

MAX_PROFILE_BYTES = 4 * 2**20  # the largest usual ones, of printing presses, have 2 to 3 MB
MAX_CACHED = 32  # transforms; one of a press takes up to some MB
TOLERANCE = 2  # levels of 255 by which the many written forms of sRGB differ
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x, y of white, red, green, blue
P3_PRIMARIES = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white that profiles are relative to
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # Pillow's mode: the profile's
# A curve of type 3: ((a v + b) ^ g where v >= d, else c v), the one of sRGB.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


class Conversion(NamedTuple):
    """From the pixels of a profile to sRGB. `mode`: that of the images which `transform` takes and gives (or gives)."""

    mode: str
    transform: ImageCms.ImageCmsTransform


_cache: OrderedDict[bytes, Conversion | None] = OrderedDict()
_lock = threading.Lock()


def to_srgb(image: Image.Image, profile: bytes | None, sink: bytes | None = None) -> Image.Image:
    """`image` (any 8-bit mode) with its pixels in sRGB, or in `sink`; itself where there is nothing to do.

    Raises InvalidImage for a profile of more than MAX_PROFILE_BYTES.
    """
    if not profile:
        return image
    if len(profile) > MAX_PROFILE_BYTES:
        raise InvalidImage(
            f"the colour profile has {len(profile)} bytes, the limit is {MAX_PROFILE_BYTES}: convert the image to sRGB"
        )
    conversion = _conversion(profile, sink or b"")
    return image if conversion is None else _converted(image, conversion)


def _converted(image: Image.Image, conversion: Conversion) -> Image.Image:
    wide = image.has_transparency_data or image.mode in ("La", "RGBa")
    if conversion.mode == "L":
        if image.mode == "1":
            return image  # black and white are those of any profile
        if image.mode not in ("L", "LA", "La"):
            return image  # a grey profile in an image with colours says nothing about them
        plain = image.convert("LA") if wide and image.mode != "LA" else image
        bands = plain.split()
        grey = ImageCms.applyTransform(bands[0], conversion.transform)
        assert grey is not None
        return Image.merge("LA", (grey, bands[1])) if len(bands) == 2 else grey
    if conversion.mode == "CMYK":
        return image if image.mode != "CMYK" else _applied(image, conversion.transform)
    if image.mode in ("CMYK", "LAB"):
        return image
    wanted = "RGBA" if wide else "RGB"
    plain = image if image.mode == wanted else image.convert(wanted)
    if plain is not image:
        image.close()
    alpha = plain.getchannel("A") if wide else None
    result = _applied(plain.convert("RGB") if wide else plain, conversion.transform)
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """In place where the mode stays, or a large image would be held twice."""
    if image.mode == "RGB":
        ImageCms.applyTransform(image, transform, inPlace=True)
        return image
    result = ImageCms.applyTransform(image, transform)
    assert result is not None
    return result


def _conversion(profile: bytes, sink: bytes = b"") -> Conversion | None:
    """The conversion of a profile, from the cache where it was met before; None where there is nothing to convert."""
    key = hashlib.sha256(profile).digest() + sink
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    built = _build(profile, sink)  # outside the lock: threads that meet the same one at once build it twice, none waits
    with _lock:
        _cache[key] = built
        while len(_cache) > MAX_CACHED:
            _cache.popitem(last=False)
    return built


def _build(profile: bytes, wanted: bytes) -> Conversion | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space
        mode = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}[space]
        # A press's profile maps its few colours perceptually; the others are exact, and relative to their own white.
        press = mode == "CMYK"
        intent = ImageCms.Intent.PERCEPTUAL if press else ImageCms.Intent.RELATIVE_COLORIMETRIC
        sink = ImageCms.ImageCmsProfile(BytesIO(wanted or (grey_profile() if mode == "L" else rgb_profile())))
        out = "RGB" if press else mode
        conversion = Conversion(mode, ImageCms.buildTransform(source, sink, mode, out, intent))
        return None if _changes_nothing(conversion) else conversion
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None


def _changes_nothing(conversion: Conversion) -> bool:
    """Whether a spread of colours stays within TOLERANCE: what it does is surer than what it is called."""
    if conversion.mode == "CMYK":
        return False
    if conversion.mode == "L":
        probe = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
        probe = Image.fromarray(grid)
    after = ImageCms.applyTransform(probe, conversion.transform)
    return bool(np.abs(np.asarray(after, np.int16) - np.asarray(probe, np.int16)).max() <= TOLERANCE)


def rgb_profile(primaries: Sequence[float] = SRGB_PRIMARIES, gamma: float | None = None) -> bytes:
    """An ICC profile of three primaries and one curve. `primaries`: x, y of white, red, green and blue.

    `gamma`: the exponent that makes a value linear; None is the curve of sRGB. Raises ValueError for primaries that
    span no colours.
    """
    matrix = _colorants(primaries)
    curve = _curve(gamma)
    tags = {b"wtpt": _xyz(D50), **{name: _xyz(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}}
    return _profile(b"RGB ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float | None = None) -> bytes:
    """An ICC profile of grey values. `gamma` as for `rgb_profile`."""
    return _profile(b"GRAY", {b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)})


def _colorants(primaries: Sequence[float]) -> NDArray[np.float64]:
    """XYZ of the primaries [3, 3] in columns, adapted to D50 by Bradford's method."""
    xy = np.asarray(primaries, np.float64).reshape(4, 2)
    if not np.isfinite(xy).all() or (xy[:, 1] <= 0).any():
        raise ValueError(f"primaries {primaries} are none")
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    white, corners = xyz[:, 0], xyz[:, 1:]
    if abs(np.linalg.det(corners)) < 1e-6:
        raise ValueError(f"primaries {primaries} span no colours")
    matrix = corners * np.linalg.solve(corners, white)
    cones = (BRADFORD @ D50) / (BRADFORD @ white)
    adapted = np.linalg.inv(BRADFORD) @ (cones[:, None] * BRADFORD) @ matrix
    return np.asarray(adapted)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", max(-(2**31), min(2**31 - 1, round(value * 65536))))


def _xyz(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(float(v)) for v in values)


def _curve(gamma: float | None) -> bytes:
    numbers = SRGB_CURVE if gamma is None else (gamma,)
    return b"para\0\0\0\0" + struct.pack(">HH", 3 if gamma is None else 0, 0) + b"".join(map(_fixed, numbers))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 4: header, tag table, tags, each at a multiple of four bytes."""
    text = "built by TailGuard".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    given = {b"desc": words, b"cprt": words, **tags}
    table, body, at = b"", b"", 132 + 12 * len(given)
    for name, content in given.items():
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = at + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(68 - len(header)) + b"".join(map(_fixed, D50))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(given)) + table + body
