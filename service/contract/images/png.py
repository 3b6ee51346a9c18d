"""PNG: what Pillow refuses or overlooks in the chunks before the pixels, and 16-bit colours with a transparent one."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from service.contract.images.profiles import P3_PRIMARIES, SRGB_PRIMARIES, grey_profile, rgb_profile
from service.errors import InvalidImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SRGB_GAMMA = 45455  # the gAMA that PNG writes for sRGB, in 100,000ths; its exponent, 2.2, is the one to compare with
NEAR = 600  # gAMA values this close to sRGB's are meant to be sRGB
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
CODED_PRIMARIES = {1: SRGB_PRIMARIES, 12: P3_PRIMARIES, 9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)}
SRGB_TRANSFERS = {1, 6, 13, 14, 15}  # of sRGB and of video, whose pictures displays treat alike


@dataclass
class Chunks:
    """What the chunks before the pixels say. `intact`: the file without the ancillary ones whose checksum is wrong."""

    intact: bytes
    depth: int
    colour: int
    found: dict[bytes, bytes] = field(default_factory=dict)


def read_chunks(data: bytes) -> Chunks | None:
    """None for a header so damaged that Pillow shall say what is wrong.

    An ancillary chunk with a wrong checksum is left out, as by other readers: the pixels are whole. The exception is
    tRNS, without which the picture would be another one. Raises InvalidImage for it, and for iOS's own format.
    """
    found: dict[bytes, bytes] = {}
    bad: list[tuple[int, int]] = []
    for name, at, length in _walk(data):
        if name == b"CgBI":
            raise InvalidImage(
                "this kind of PNG is not read: it is optimised for iOS (a CgBI chunk; no standard PNG): save it again"
            )
        content = data[at + 8 : at + 8 + length]
        if name[0] & 0x20 and zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(
            data[at + 8 + length :][:4], "big"
        ):
            if name == b"tRNS":
                raise InvalidImage(
                    "the image is damaged (the checksum of its tRNS chunk is wrong): send an intact file"
                )
            bad.append((at, at + 12 + length))
            continue
        found.setdefault(name, content)
    head = found.get(b"IHDR", b"")
    if len(head) < 13:
        return None
    return Chunks(_without(data, bad), head[8], head[9], found)


def _walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and length of the content of each chunk before the pixels."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in (b"IDAT", b"IEND", b"fdAT") or at + 12 + length > len(data) or not name.isalpha():
            return
        yield name, at, length
        at += 12 + length


def _without(data: bytes, pieces: list[tuple[int, int]]) -> bytes:
    if not pieces:
        return data
    kept, at = [], 0
    for start, end in pieces:
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]])


def colours(chunks: Chunks, profile: bytes | None) -> tuple[bytes | None, bytes | None]:
    """The profile of the pixels and the one to bring them to (None: sRGB's), by the chunk that comes first in rank.

    cICP, then iCCP, sRGB, and gAMA with cHRM. A gAMA means an exponent, and is compared with that of sRGB's own gAMA.
    Raises InvalidImage for the transfer functions of high dynamic range, which have no rendering in 8 bits.
    """
    coded = chunks.found.get(b"cICP", b"")
    if len(coded) == 4:
        return coded_colours(coded[0], coded[1], "PNG"), None
    if profile or b"sRGB" in chunks.found:
        return profile, None
    gamma, corners = chunks.found.get(b"gAMA", b""), chunks.found.get(b"cHRM", b"")
    if not gamma and not corners:
        return None, None
    exponent = 100_000 / SRGB_GAMMA
    if len(gamma) == 4 and (value := int.from_bytes(gamma, "big")) and abs(value - SRGB_GAMMA) > NEAR:
        exponent = 100_000 / value
    same = exponent == 100_000 / SRGB_GAMMA
    if chunks.colour in (0, 4):
        return (None, None) if same else (grey_profile(exponent), grey_profile(100_000 / SRGB_GAMMA))
    primaries = SRGB_PRIMARIES
    if len(corners) == 32:
        primaries = tuple(v / 100_000 for v in struct.unpack(">8I", corners))
    if same and np.allclose(primaries, SRGB_PRIMARIES, atol=0.002):
        return None, None
    try:
        return rgb_profile(primaries, exponent), rgb_profile(gamma=100_000 / SRGB_GAMMA)
    except ValueError:  # primaries that are none: as for a damaged profile
        return None, None


def coded_colours(primaries: int, transfer: int, kind: str) -> bytes | None:
    """The profile of colours given by their code points (ITU-T H.273), None for sRGB and for what is unspecified."""
    if transfer in HDR_TRANSFERS:
        raise InvalidImage(
            f"this kind of {kind} is not read: high dynamic range ({HDR_TRANSFERS[transfer]}): save it as sRGB"
        )
    known = CODED_PRIMARIES.get(primaries)
    gamma = {4: 2.2, 5: 2.8, 8: 1.0}.get(transfer)
    if known is None or (known == SRGB_PRIMARIES and gamma is None):
        return None
    return rgb_profile(known, gamma)


def mend_transparency(image: Image.Image, chunks: Chunks) -> None:
    """Bring the transparent value of an opened PNG to the scale that Pillow gives its pixels."""
    key = image.info.get("transparency")
    if isinstance(key, int) and chunks.colour == 0 and chunks.depth in (2, 4, 8):
        highest = (1 << chunks.depth) - 1
        image.info["transparency"] = (key & highest) * (255 // highest)
    elif isinstance(key, tuple) and chunks.depth == 8:
        image.info["transparency"] = tuple(v & 0xFF for v in key)


def deep_transparency(image: Image.Image, data: bytes, chunks: Chunks) -> Image.Image:
    """A decoded 16-bit RGB as RGBA: transparent where all 16 bits of all three values are those of tRNS.

    Pillow keeps the high bytes; the low ones are those it takes for high when it is told the other byte order.
    """
    key = image.info.pop("transparency")
    low = Image.open(BytesIO(data), formats=("PNG",))
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    low.load()
    alpha = Image.new("L", image.size, 255)
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        high_values, low_values = (np.asarray(part.crop(box), np.uint16) for part in (image, low))
        holes = ((high_values << 8 | low_values) == np.array(key, np.uint16)).all(axis=2)
        alpha.paste(Image.fromarray(np.where(holes, 0, 255).astype(np.uint8)), (0, top))
    low.close()
    image.putalpha(alpha)
    return image
