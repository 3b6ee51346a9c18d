"""JPEG: kinds by their start-of-frame segment, arithmetic coding, and files that lack only their end marker."""

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageChops

from service.contract.images.limits import Frame
from service.errors import InvalidImage

END = b"\xff\xd9"
# Bits that a decoder would take for pixels if some were missing; a file that has all of them ignores what follows.
TAILS = (b"", b"\x55" * 64, b"\xaa" * 64)
PROGRESSIVE = (0xC2, 0xCA)
ARITHMETIC = (0xC9, 0xCA)
READ = (0xC0, 0xC1, *PROGRESSIVE, 0xC9)
KINDS = {0xC3: "lossless", 0xCB: "lossless, arithmetic", 0xF7: "JPEG-LS"}


def refuse_kind(frame: Frame | None) -> None:
    """Raise InvalidImage for a JPEG whose coding or depth is not read, by name."""
    if frame is None:
        return
    if frame.marker not in READ:
        kind = KINDS.get(frame.marker, "hierarchical")
        raise InvalidImage(f"this kind of JPEG is not read: {kind}: save it as a baseline or progressive JPEG or a PNG")
    if frame.bits != 8:
        raise InvalidImage(
            f"this kind of JPEG is not read: {frame.bits} bits a sample: save it with 8 bits, or as a PNG"
        )
    if frame.components not in (1, 3, 4):
        raise InvalidImage(f"this kind of JPEG is not read: {frame.components} components: save it as RGB")


def without_end(data: bytes, frame: Frame | None) -> bytes | None:
    """`data` with an end marker where that is all it lacks, else None: some of its pixels are missing.

    All pixels are there when the picture does not depend on what follows the last byte, and in a progressive file when
    its scans also refine every coefficient to the end.
    """
    if frame is None or (frame.marker in PROGRESSIVE and not _all_scans(data, frame)):
        return None
    before: Image.Image | None = None
    for tail in TAILS:
        image = Image.open(BytesIO(data + tail + END), formats=("JPEG",))
        if frame.marker in ARITHMETIC:
            image.decodermaxblock = len(data) + 128
        try:
            image.load()
        except OSError:
            return None
        if before is not None and ImageChops.difference(before, image).getbbox(alpha_only=False):
            return None
        before = image
    return data + END


def _all_scans(data: bytes, frame: Frame) -> bool:
    """Whether the scans of a progressive JPEG bring every coefficient of every component to its last bit."""
    missing = {(component, k) for component in range(frame.components) for k in range(64)}
    names: dict[int, int] = {}
    for marker, at in _segments(data):
        if marker in PROGRESSIVE:
            names = {data[at + 10 + 3 * i]: i for i in range(frame.components) if at + 10 + 3 * i < len(data)}
        elif marker == 0xDA and at + 5 < len(data):
            count = data[at + 4]
            end = at + 5 + 2 * count
            if end + 3 > len(data):
                return False
            first, last, bits = struct.unpack_from("3B", data, end)
            if bits & 15 == 0:
                parts = [names[data[at + 5 + 2 * i]] for i in range(count) if data[at + 5 + 2 * i] in names]
                missing -= {(part, k) for part in parts for k in range(first, last + 1)}
    return not missing


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Second byte and position of each marker with a segment, those between the scans included."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            at += 1 if marker == 0xFF else 2
            continue
        yield marker, at
        at += 2 + (data[at + 2] << 8 | data[at + 3])
