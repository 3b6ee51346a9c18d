"""Small intact images of every format and mode that service/contract/images.py reads: what the fuzzer mutates."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from service.contract.images import profiles
from tests.fuzz import tiffs
from tests.hard import giants

SIDES = (40, 28)  # width, height, pixels
ORIENTATION = 0x0112


def seeds() -> dict[str, bytes]:
    """File contents by a name that says what they are."""
    rgb = _picture()
    rgba = rgb.copy()
    rgba.putalpha(rgb.getchannel(0))
    grey, palette, one = rgb.convert("L"), rgb.quantize(16), rgb.convert("1")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [rgb.rotate(90 * turn) for turn in (1, 2)]
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    found = {
        "jpeg": _file(rgb, "JPEG", quality=80),
        "jpeg-progressive": _file(rgb, "JPEG", progressive=True, quality=60),
        "jpeg-444-restart": _file(rgb, "JPEG", subsampling=0, restart_marker_blocks=2),
        "jpeg-cmyk": _file(rgb.convert("CMYK"), "JPEG"),
        "jpeg-grey": _file(grey, "JPEG"),
        "jpeg-exif": _file(rgb, "JPEG", exif=turned),
        "jpeg-large": _file(rgb.resize((640, 427)), "JPEG"),
        "png-rgb": _file(rgb, "PNG"), "png-rgba": _file(rgba, "PNG"), "png-grey": _file(grey, "PNG"),
        "png-grey-alpha": _file(rgba.convert("LA"), "PNG"), "png-palette": _file(palette, "PNG"),
        "png-palette-hole": _file(palette, "PNG", transparency=3), "png-1-bit": _file(one, "PNG"),
        "png-16-bit": _file(deep, "PNG"), "png-exif": _file(rgb, "PNG", exif=turned),
        "png-rgb-hole": _file(rgb, "PNG", transparency=(1, 2, 3)),
        "png-interlaced": interlaced(),
        "apng": _file(rgb, "PNG", save_all=True, append_images=frames, duration=50),
        "webp": _file(rgb, "WEBP"), "webp-lossless": _file(rgba, "WEBP", lossless=True),
        "webp-alpha": _file(rgba, "WEBP"), "webp-exif": _file(rgb, "WEBP", exif=turned),
        "webp-animated": _file(rgb, "WEBP", save_all=True, append_images=frames),
        "bmp": _file(rgb, "BMP"), "bmp-palette": _file(palette, "BMP"), "bmp-1-bit": _file(one, "BMP"),
        "bmp-32-bit": _file(rgba, "BMP"), "bmp-runs": runs(),
        "gif": _file(palette, "GIF"), "gif-hole": _file(palette, "GIF", transparency=2),
        "gif-animated": _file(rgb, "GIF", save_all=True, append_images=frames),
        "gif-flat": _file(palette, "GIF", interlace=0),
        "tiff-pages": _file(rgb, "TIFF", save_all=True, append_images=frames),
        "tiff-16-bit": _file(deep, "TIFF"), "tiff-float": _file(grey.convert("F"), "TIFF"),
        "tiff-32-bit": _file(grey.convert("I"), "TIFF"), "tiff-exif": _file(rgb, "TIFF", exif=turned),
        "tiff-group4": _file(one, "TIFF", compression="group4"),
        "tiff-cmyk": _file(rgb.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff-lab": _file(Image.merge("LAB", rgb.split()), "TIFF"),
    }  # fmt: skip
    found |= _coloured(rgb, grey, rgba) | _deep()
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found[f"tiff-{compression}"] = _file(rgb, "TIFF", compression=compression)
    return found


def _coloured(rgb: Image.Image, grey: Image.Image, rgba: Image.Image) -> dict[str, bytes]:
    """Images with a profile, and those of telephones."""
    p3, curve = profiles.rgb_profile(profiles.P3_PRIMARIES), profiles.grey_profile(1.8)
    found = {
        "jpeg-profile": _file(rgb, "JPEG", icc_profile=p3), "png-profile": _file(rgb, "PNG", icc_profile=p3),
        "png-grey-profile": _file(grey, "PNG", icc_profile=curve), "webp-profile": _file(rgba, "WEBP", icc_profile=p3),
        "tiff-profile": _file(rgb, "TIFF", icc_profile=p3),
        "png-gamma": with_chunks(_file(rgb, "PNG"), (b"gAMA", struct.pack(">I", 100_000))),
        "avif": _file(rgb, "AVIF"), "avif-alpha": _file(rgba, "AVIF"),
        "avif-profile": _file(rgb, "AVIF", icc_profile=p3),
        "avif-animated": _file(rgb, "AVIF", save_all=True, append_images=[rgb.rotate(90)]),
    }  # fmt: skip
    try:
        import pillow_heif
    except ImportError:  # HEIC is an extra
        return found
    pillow_heif.register_heif_opener()
    return found | {"heic": _file(rgb, "HEIF"), "heic-alpha": _file(rgba, "HEIF"), "heic-grey": _file(grey, "HEIF")}


def _deep() -> dict[str, bytes]:
    """TIFFs that service/contract/images/tiff.py unpacks itself."""
    width, height = SIDES
    values = np.asarray(_picture()).astype(np.float64) / 255
    deep = (values * 65535).astype("<u2")
    packed = np.packbits(((values[..., 0] * 4095).astype(np.uint16)[..., None] >> np.arange(11, -1, -1)) & 1)
    return {
        "tiff-12-bit": tiffs.tiff(width, height, [packed.tobytes()], bits=12),
        "tiff-16-bit-apart": tiffs.tiff(
            width, height, [deep[..., i].tobytes() for i in range(3)], bits=16, samples=3, photometric=2, planar=2
        ),
        "tiff-16-bit-deflate": tiffs.tiff(
            width, height, [zlib.compress(deep.tobytes())], bits=16, samples=3, photometric=2, compression=8
        ),
        "tiff-float-deflate": tiffs.tiff(
            width, height, [zlib.compress(values.astype("<f4").tobytes())], bits=32, samples=3, photometric=2,
            compression=8, form=3,
        ),
        "tiff-palette": tiffs.tiff(
            width, height, [bytes(range(256)) * 4 + bytes(96)], bits=8, photometric=3, colormap=list(range(256)) * 3
        ),
    }  # fmt: skip


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks after its header."""
    made = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return data[:33] + b"".join(made) + data[33:]


def interlaced() -> bytes:
    """An Adam7 PNG, 8-bit grey, written by hand: Pillow reads such files and writes none."""

    width, height = SIDES
    pixels = np.asarray(_picture().convert("L"))
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    content = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in content
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def runs() -> bytes:
    """A run-length encoded BMP."""

    return giants.bmp(*SIDES)


def _picture() -> Image.Image:
    width, height = SIDES
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    grain = np.random.default_rng(0).normal(0, 12, (height, width))
    planes = np.stack([200 * x + grain, 180 * y + grain, 120 + 60 * np.sin(9 * x * y) + grain], axis=-1)
    return Image.fromarray(np.clip(planes, 0, 255).astype(np.uint8))


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
