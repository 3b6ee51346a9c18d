"""BMP: an embedded profile, which Pillow leaves alone, and alpha that its mask has and its pixels have not."""

import struct

from PIL import Image

from service.errors import InvalidImage

FILE_HEADER_BYTES = 14
EMBEDDED_PROFILE = b"DEBM"  # "MBED" as a little-endian number
KINDS = {4: "JPEG inside", 5: "PNG inside", 6: "alpha bit fields"}


def refuse_kind(data: bytes) -> None:
    """Raise InvalidImage for a BMP whose layout is not read, by name."""
    if len(data) < FILE_HEADER_BYTES + 40 or (size := int.from_bytes(data[14:18], "little")) < 40:
        return
    bits, compression = struct.unpack_from("<HI", data, 28)
    if compression in KINDS:
        raise InvalidImage(f"this kind of BMP is not read: {KINDS[compression]}: save it as a PNG")
    if compression == 3 and bits == 16 and size >= 56 and int.from_bytes(data[66:70], "little"):
        raise InvalidImage("this kind of BMP is not read: 16 bits with alpha: save it as a PNG")


def profile(data: bytes) -> bytes | None:
    """The ICC profile of a BMP of version 5, None where there is none."""
    if data[14:18] != b"\x7c\0\0\0" or data[70:74] != EMBEDDED_PROFILE:
        return None
    at, length = struct.unpack_from("<II", data, FILE_HEADER_BYTES + 112)
    return data[FILE_HEADER_BYTES + at :][:length]


def without_empty_alpha(image: Image.Image) -> Image.Image:
    """A decoded BMP without its alpha where that is 0 everywhere: programs leave the mask in and the values out."""
    if image.mode != "RGBA" or image.getchannel("A").getextrema() != (0, 0):
        return image
    opaque = image.convert("RGB")
    image.close()
    return opaque
