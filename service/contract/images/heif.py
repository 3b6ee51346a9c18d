"""AVIF and HEIC: which of the two a file is, the plugins that read them, and what their boxes say before decoding.

AVIF is read by Pillow itself. HEIC needs the package pillow-heif (`pip install "tailguard[heif]"`), which is imported
at the first such file. Both decoders work in the one thread that calls them: the service has a pool of its own.
"""

import struct
import threading
from collections.abc import Iterator

from PIL import AvifImagePlugin

from service.contract.images import av1
from service.contract.images.limits import limit_pixels
from service.errors import UnsupportedMedia

AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
SHARED_BRANDS = {b"mif1", b"msf1"}
CONTAINERS = {  # boxes that hold boxes, after that many bytes
    b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0,
}  # fmt: skip
MAX_BOXES = 10_000

AvifImagePlugin.DEFAULT_MAX_THREADS = 1
_lock = threading.Lock()
_registered = False


def kind_of(data: bytes) -> str | None:
    """ "AVIF" or "HEIF" by the brands of the file, None for anything else."""
    if data[4:8] != b"ftyp":
        return None
    size = int.from_bytes(data[:4], "big")
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256, len(data)), 4))}
    if data[8:12] not in AVIF_BRANDS | HEIC_BRANDS | SHARED_BRANDS:
        return None
    if data[8:12] in HEIC_BRANDS or (brands & HEIC_BRANDS and data[8:12] not in AVIF_BRANDS):
        return "HEIF"
    return "AVIF" if brands & AVIF_BRANDS else "HEIF"


def register() -> None:
    """Make Pillow read HEIC. Raises UnsupportedMedia where pillow-heif is not installed."""
    global _registered
    with _lock:
        if _registered:
            return
        try:
            import pillow_heif
        except ImportError:
            raise UnsupportedMedia(
                'HEIC images are read where pillow-heif is installed: pip install "tailguard[heif]", or send a JPEG'
            ) from None
        pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
        _registered = True


def limit_parts(data: bytes, kind: str, max_pixels: int) -> None:
    """Raise InvalidImage where a part of the file is larger than the whole may be.

    Parts are what the container tells of, and for AVIF what the coded data themselves say: libavif would decode a
    picture of any size that the container calls small. (libheif refuses such a file by itself.)
    """
    boxes = list(_boxes(data))
    for name, at, end in boxes:
        if name == b"ispe" and at + 12 <= end:
            width, height = struct.unpack_from(">II", data, at + 4)
            limit_pixels(width, height, max_pixels, kind)
    if kind == "AVIF":
        for piece in av1.coded_pieces(data, boxes):
            for width, height in av1.sizes(piece):
                limit_pixels(width, height, max_pixels, kind)


def coded_colours(data: bytes) -> tuple[int, int] | None:
    """Code points of primaries and transfer function (ITU-T H.273) of the first `colr` box that holds such."""
    for name, at, end in _boxes(data):
        if name == b"colr" and data[at : at + 4] == b"nclx" and at + 8 <= end:
            primaries, transfer = struct.unpack_from(">HH", data, at + 4)
            return primaries, transfer
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each box in the header of the file, and where its content begins and ends."""
    waiting, count = [(0, len(data))], 0
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end and count < MAX_BOXES:
            size, name = struct.unpack_from(">I4s", data, at)
            head = 8
            if size == 1 and at + 16 <= end:
                size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
            size = end - at if size == 0 else size
            if size < head or at + size > end:
                break
            count += 1
            yield name, at + head, at + size
            if name in CONTAINERS:
                waiting.append((at + head + CONTAINERS[name], at + size))
            at += size
