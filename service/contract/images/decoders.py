"""One function per format: the bytes of a file to a decoded image, after everything that its header can refuse."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import (  # plugins by name: the first two uploads, in two threads, must not race to register them
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from service.contract.bundle import Input
from service.contract.images import bmp, heif, jpeg, png, tiff, tiff_header, tiff_kinds
from service.contract.images.limits import draft_size, jpeg_frame, limit_pixels, limit_scans
from service.errors import InvalidImage

# What a damaged file makes Pillow warn of is said in the answer, or does not matter; the log is not the place.
warnings.filterwarnings("ignore", module=r"PIL\.")
PLUGINS = (
    AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin,
    WebPImagePlugin,
)  # fmt: skip
ORIENTATION_TAG = 0x0112
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")


@dataclass
class Decoded:
    """A decoded image as it is stored: not turned, in the colours of `profile` (None: sRGB).

    `width`, `height`: of the stored picture, before a JPEG was reduced. `orientation`: of EXIF or XMP, 1 to 8.
    `sink`: the profile to bring the colours to, None for sRGB.
    """

    image: Image.Image
    width: int
    height: int
    orientation: int = 1
    profile: bytes | None = None
    sink: bytes | None = None


def _jpeg(data: bytes, target: Input, max_pixels: int) -> Decoded:
    frame = jpeg_frame(data)
    jpeg.refuse_kind(frame)
    image, whole = _open(data, "JPEG", max_pixels), data
    limit_scans(data)
    width, height = image.size
    for attempt in (1, 2):
        if frame is not None and frame.marker in jpeg.ARITHMETIC:
            image.decodermaxblock = len(whole)  # its decoder cannot wait for more in the middle
        wanted = draft_size(width, height, target)
        if wanted[0] <= width and wanted[1] <= height:
            image.draft(image.mode, wanted)
        try:
            image.load()
            break
        except OSError:
            mended = jpeg.without_end(data, frame) if attempt == 1 else None
            if mended is None:
                raise
            image, whole = _open(mended, "JPEG", max_pixels), mended
    return Decoded(image, width, height, _orientation(image), _profile(image))


def _png(data: bytes, target: Input, max_pixels: int) -> Decoded:
    chunks = png.read_chunks(data)
    image: Image.Image = _open(chunks.intact if chunks else data, "PNG", max_pixels)
    image.load()
    profile, sink = _profile(image), None
    if chunks is not None:
        png.mend_transparency(image, chunks)
        if chunks.depth == 16 and chunks.colour == 2 and "transparency" in image.info:
            image = png.deep_transparency(image, chunks.intact, chunks)
        profile, sink = png.colours(chunks, profile)
    return Decoded(image, *image.size, _orientation(image), profile, sink)


def _tiff(data: bytes, target: Input, max_pixels: int) -> Decoded:
    page = tiff_header.full_page(data)
    limit_pixels(page.width, page.height, max_pixels, "TIFF", page.pixel_bytes)
    if tiff_kinds.by_pillow(page):
        image = _open(tiff_header.opened_at(data, page), "TIFF", max_pixels)
        stored = (page.width, page.height) if page.orientation < 5 else (page.height, page.width)
        image.load()  # Pillow turns it upright while it loads
        return Decoded(image, *stored, 1, page.profile)
    if tiff_kinds.by_us(page):
        orientation = page.orientation or _xmp_orientation(page.xmp)
        return Decoded(tiff.decode(data, page), page.width, page.height, orientation, page.profile)
    raise InvalidImage(
        f"this kind of TIFF is not read: {tiff_kinds.words(page)}: save it with 8 bits as RGB or grey, or as a PNG"
    )


def _bmp(data: bytes, target: Input, max_pixels: int) -> Decoded:
    bmp.refuse_kind(data)
    image = _open(data, "BMP", max_pixels)
    image.load()
    return Decoded(bmp.without_empty_alpha(image), *image.size, 1, bmp.profile(data))


def _avif(data: bytes, target: Input, max_pixels: int) -> Decoded:
    return _coded(data, "AVIF", max_pixels)


def _heic(data: bytes, target: Input, max_pixels: int) -> Decoded:
    heif.register()
    return _coded(data, "HEIF", max_pixels)


def _coded(data: bytes, form: str, max_pixels: int) -> Decoded:
    """An AVIF or HEIC: one container, two codecs."""
    image = _open(data, form, max_pixels)
    heif.limit_parts(data, form, max_pixels)
    profile = _profile(image)
    if not profile and (points := heif.coded_colours(data)):
        profile = png.coded_colours(*points, form)
    image.load()
    return Decoded(image, *image.size, _orientation(image), profile)


def _plain(form: str) -> Callable[[bytes, Input, int], Decoded]:
    """A format of which Pillow's reading needs no help."""

    def decode(data: bytes, target: Input, max_pixels: int) -> Decoded:
        image = _open(data, form, max_pixels)
        image.load()
        return Decoded(image, *image.size, _orientation(image), _profile(image))

    return decode


DECODERS: dict[str, Callable[[bytes, Input, int], Decoded]] = {
    "JPEG": _jpeg, "PNG": _png, "WebP": _plain("WEBP"), "BMP": _bmp, "GIF": _plain("GIF"), "TIFF": _tiff,
    "AVIF": _avif, "HEIC": _heic,
}  # fmt: skip


def _open(data: bytes, form: str, max_pixels: int) -> ImageFile:
    """Open by one plugin, which reads the header, and refuse what has too many pixels."""
    image = Image.open(BytesIO(data), formats=(form,))
    assert isinstance(image, ImageFile)
    kind = {"WEBP": "WebP", "HEIF": "HEIC"}.get(form, form)
    if form == "BMP" and image.tile and image.tile[0][0] == "bmp_rle":
        kind = "run-length encoded BMP"
    limit_pixels(*image.size, max_pixels, kind)
    return image


def _profile(image: Image.Image) -> bytes | None:
    found = image.info.get("icc_profile")
    return found if isinstance(found, bytes) else None


def _orientation(image: Image.Image) -> int:
    """That of EXIF, or where it has none that of XMP, which Pillow looks up too; 1 where neither says one."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels, which are intact
        return 1
    return value if isinstance(value, int) else 1


def _xmp_orientation(xmp: bytes) -> int:
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1
