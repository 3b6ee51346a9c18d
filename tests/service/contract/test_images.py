"""service/contract/images.py with real files: every format and mode, orientation, damage, limits."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Input
from service.contract.images import MAX_SCANS, TURNS, Loaded, load
from service.errors import InvalidImage, UnsupportedMedia

LIMIT = 50_000_000


def target(width: int, height: int, fit: Literal["stretch", "crop"] = "stretch") -> Input:
    return Input(width_px=width, height_px=height, fit=fit, resampling="bilinear")


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(data: bytes, width: int = 16, height: int = 12) -> Loaded:
    return load(data, target(width, height), max_pixels=LIMIT)


def picture(width: int = 16, height: int = 12) -> NDArray[np.uint8]:
    """Smooth, in colour, and unlike any of its own flips and turns."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / (width - 1), 255 * y / (height - 1), 255 * (x + y) / (width + height - 2)]
    return np.stack(planes, -1).astype(np.uint8)


PICTURE = picture()
RGB = Image.fromarray(PICTURE)


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_at_target_size_are_pixel_exact(form: str, options: dict[str, Any]) -> None:
    loaded = read(encode(RGB, form, **options))
    np.testing.assert_array_equal(loaded.pixels, PICTURE)
    assert (loaded.width_px, loaded.height_px, loaded.pixels.dtype) == (16, 12, np.uint8)


def test_jpeg_at_target_size_is_what_pillow_decodes() -> None:
    data = encode(RGB, "JPEG", quality=95)
    np.testing.assert_array_equal(read(data).pixels, np.asarray(Image.open(BytesIO(data))))


def test_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 12), c) for c in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(data).pixels, np.full((12, 16, 3), (255, 0, 0), np.uint8))


def test_multi_picture_jpeg_of_phones_is_a_jpeg() -> None:
    data = encode(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)], quality=95)
    np.testing.assert_allclose(read(data).pixels, PICTURE, atol=24)


@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, form: str, fit: Literal["stretch", "crop"]) -> None:
    """A file stored turned, with the tag that says so, looks like the upright one. Large enough for JPEG drafts."""
    upright = Image.fromarray(picture(160, 120))
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # the others are their own inverse
    turn = undo.get(orientation, TURNS.get(orientation))
    stored = upright.transpose(turn) if turn is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 98} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    loaded = load(encode(stored, form, exif=exif, **options), target(16, 12, fit), max_pixels=LIMIT)
    assert (loaded.width_px, loaded.height_px) == (160, 120)
    expected = np.asarray(upright.resize((16, 12), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(loaded.pixels, expected, atol=4)


def test_draft_decoding_is_close_to_full_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Image.fromarray(picture(16, 12)).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encode(large, "JPEG", quality=95)
    seen: list[tuple[int, int]] = []
    original = Image.Image.resize

    def spy(self: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        seen.append(self.size)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    drafted = read(data, 64, 48)
    assert seen == [(200, 150)]  # an eighth, and still more than twice the target
    assert (drafted.width_px, drafted.height_px) == (1600, 1200)
    full = Image.open(BytesIO(data)).resize((64, 48), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(drafted.pixels, np.asarray(full), atol=4)
    read(data, 500, 400)
    assert seen[-1] == (1600, 1200)  # a draft at 800 would leave less than twice 500


def test_crop_takes_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    loaded = load(encode(Image.fromarray(wide), "PNG"), target(10, 10, "crop"), max_pixels=LIMIT)
    np.testing.assert_array_equal(loaded.pixels, np.full((10, 10, 3), 200, np.uint8))


def test_crop_of_odd_excess_does_not_blur() -> None:
    data = encode(RGB, "PNG")  # 16 x 12 to 11 x 12: two and a half columns on each side
    loaded = load(data, target(11, 12, "crop"), max_pixels=LIMIT)
    np.testing.assert_array_equal(loaded.pixels, PICTURE[:, 2:13])


def test_resize_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    loaded = read(encode(Image.fromarray(board.astype(np.uint8)), "PNG"), 8, 8)
    np.testing.assert_allclose(loaded.pixels, 127.5, atol=2)


# Modes ---------------------------------------------------------------------------------------------------------------


def test_grey_becomes_three_equal_planes() -> None:
    grey = PICTURE[..., 0]
    for form in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(read(encode(Image.fromarray(grey), form)).pixels, np.stack([grey] * 3, -1))


def test_one_bit() -> None:
    bits = PICTURE[..., 0] > 127
    pixels = read(encode(Image.fromarray(bits), "PNG")).pixels
    np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, -1))


def test_alpha_is_laid_on_white() -> None:
    rgba = np.zeros((12, 16, 4), np.uint8)  # black: transparent on the left, half in the middle, opaque on the right
    rgba[:, 5:10, 3], rgba[:, 10:, 3] = 128, 255
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = read(encode(Image.fromarray(rgba), form, **options)).pixels
        assert set(pixels[:, :5].flat) == {255}
        assert set(pixels[:, 5:10].flat) == {127}
        assert set(pixels[:, 10:].flat) == {0}


def test_grey_with_alpha() -> None:
    la = np.zeros((12, 16, 2), np.uint8)
    la[:, 8:, 1] = 255
    pixels = read(encode(Image.fromarray(la), "PNG")).pixels
    assert (set(pixels[:, :8].flat), set(pixels[:, 8:].flat)) == ({255}, {0})


def test_palette_with_and_without_transparency() -> None:
    colours = np.zeros((12, 16), np.uint8)
    colours[:, 8:] = 1
    image = Image.fromarray(colours)
    image.putpalette([200, 10, 20, 30, 40, 250])
    solid = read(encode(image, "PNG")).pixels
    assert solid[0, 0].tolist() == [200, 10, 20]
    assert solid[0, 15].tolist() == [30, 40, 250]
    for form in ("PNG", "GIF"):
        holed = read(encode(image, form, transparency=1)).pixels
        assert holed[0, 0].tolist() == [200, 10, 20]
        assert holed[0, 15].tolist() == [255, 255, 255]
    bytewise = read(encode(image, "PNG", transparency=bytes([255, 0]))).pixels
    assert bytewise[0, 15].tolist() == [255, 255, 255]


def test_colour_key_transparency_of_png() -> None:
    image = Image.new("RGB", (16, 12), (1, 2, 3))
    assert set(read(encode(image, "PNG", transparency=(1, 2, 3))).pixels.flat) == {255}


def test_cmyk_of_jpeg_and_tiff() -> None:
    cmyk = Image.new("CMYK", (16, 12), (0, 255, 255, 0))  # red; Pillow writes JPEGs inverted, as Adobe does
    for form in ("JPEG", "TIFF"):
        np.testing.assert_allclose(read(encode(cmyk, form)).pixels, np.full((12, 16, 3), (255, 0, 0)), atol=3)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 16 * 12).reshape(12, 16).astype(np.uint16)
    expected = np.rint(deep / 257).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read(encode(Image.fromarray(deep), form)).pixels, np.stack([expected] * 3, -1))


def test_sixteen_bit_grey_with_transparency() -> None:
    deep = np.full((12, 16), 1000, np.uint16)
    data = png(16, 12, 16, 0, deep.astype(">u2"), extra=[(b"tRNS", struct.pack(">H", 1000))])
    assert set(read(data).pixels.flat) == {255}


def test_sixteen_bit_colour_png() -> None:
    deep = PICTURE.astype(">u2") * 257
    np.testing.assert_array_equal(read(png(16, 12, 16, 2, deep)).pixels, PICTURE)


def test_thirty_two_bit_modes() -> None:
    grey = PICTURE[..., 0]
    wanted = np.stack([grey] * 3, -1)
    for values in (
        grey.astype(np.int32),
        grey.astype(np.int32) * 257,
        grey.astype(np.float32),
        grey.astype(np.float32) / 255,
        grey.astype(np.float32) * 257,
    ):
        np.testing.assert_array_equal(read(encode(Image.fromarray(values), "TIFF")).pixels, wanted)


@pytest.mark.parametrize("bad", [-1.0, 1e9, float("nan")])
def test_floats_of_no_known_range_are_refused(bad: float) -> None:
    values = np.full((12, 16), bad, np.float32)
    with pytest.raises(InvalidImage, match="32-bit image holds values"):
        read(encode(Image.fromarray(values), "TIFF"))


# Refusals ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: NDArray[Any] | None = None,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""
    raw = b"".join(b"\0" + row.tobytes() for row in rows) if rows is not None else b""
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    chunks += [chunk(kind, content) for kind, content in extra or []]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


def test_empty() -> None:
    with pytest.raises(InvalidImage, match="0 bytes"):
        read(b"")


@pytest.mark.parametrize(
    "data", [b"hello, world", b"\0" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"]
)
def test_other_content_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, HEIC"):
        read(data)


@pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_formats_outside_the_list_are_unsupported(form: str) -> None:
    with pytest.raises(UnsupportedMedia):
        read(encode(RGB, form))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(InvalidImage):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (0, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage):
        read(png(*size, 8, 2))


def test_two_hundred_megapixels_are_refused_from_the_header() -> None:
    with pytest.raises(InvalidImage, match=r"20000 x 10000 = 200000000 pixels, the limit is 50000000"):
        read(png(20_000, 10_000, 8, 2))  # its pixel data is missing: decoding would say something else


@pytest.mark.parametrize(("form", "limit"), [("PNG", 16 * 12), ("JPEG", 16 * 12), ("WEBP", 4 * 16 * 12)])
def test_the_limit_itself_is_allowed(form: str, limit: int) -> None:
    data = encode(RGB, form)
    assert load(data, target(4, 4), max_pixels=limit).width_px == 16
    with pytest.raises(InvalidImage, match="192 pixels, the limit"):
        load(data, target(4, 4), max_pixels=limit - 1)


def test_run_length_encoded_bmp_has_a_lower_limit() -> None:
    """Its decoder is written in Python: a kilobyte would keep a thread for seconds."""
    for width, fits in ((100, True), (1_000_000, False)):
        header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, 2, 0, 0, 256, 0)
        runs = bytes([width, 7]) + b"\0\1" if fits else b"\0\1"
        data = b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs
        if fits:
            assert read(data).width_px == width
        else:
            with pytest.raises(InvalidImage, match="the limit for run-length encoded BMP is 781250"):
                read(data)


def test_damaged_exif_does_not_matter() -> None:
    data = encode(RGB, "JPEG", exif=b"Exif\0\0garbage that is no TIFF header", quality=95)
    np.testing.assert_array_equal(read(data).pixels, np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: type) -> None:
    np.testing.assert_array_equal(load(kind(encode(RGB, "PNG")), target(16, 12), max_pixels=LIMIT).pixels, PICTURE)
    with pytest.raises(UnsupportedMedia):
        load(kind(b"hello, world"), target(16, 12), max_pixels=LIMIT)


# Large images ---------------------------------------------------------------------------------------------------------


def white_under(rgba: NDArray[np.uint8]) -> Image.Image:
    """The colours on white, in floats and at full size: what any shortcut must come to."""
    alpha = rgba[..., 3:] / 255
    return Image.fromarray(np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_alpha_is_laid_on_white_as_if_before_the_resize(fit: Literal["stretch", "crop"], grey: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 4), np.uint8)
    if grey:
        noise[..., :3] = noise[..., :1]
    stored = Image.fromarray(noise[..., [0, 3]] if grey else noise)  # two planes are LA
    found = load(encode(stored, "PNG"), target(16, 12, fit), max_pixels=LIMIT).pixels
    wanted = load(encode(white_under(noise), "PNG"), target(16, 12, fit), max_pixels=LIMIT).pixels
    np.testing.assert_allclose(found.astype(int), wanted, atol=2)


def test_palette_alpha_is_that_of_its_colours() -> None:
    index = np.random.default_rng(0).integers(0, 4, (120, 160)).astype(np.uint8)
    colours = np.array([[9, 99, 199, 0], [50, 100, 150, 77], [255, 0, 0, 200], [1, 2, 3, 255]], np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours[:, :3].tobytes())
    found = read(encode(image, "PNG", transparency=colours[:, 3].tobytes())).pixels
    wanted = read(encode(white_under(colours[index]), "PNG")).pixels
    np.testing.assert_allclose(found.astype(int), wanted, atol=1)


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_deep_images_of_several_strips(values: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bottom strip alone holds the largest value, which sets the range of all."""
    monkeypatch.setattr("service.contract.images.modes.STRIP_PIXELS", 50)
    grey = np.zeros((31, 16), np.uint8)
    grey[5], grey[30] = 100, 255
    data = encode(Image.fromarray((grey.astype(np.float64) * 257).astype(values)), "TIFF")
    np.testing.assert_array_equal(read(data, 16, 31).pixels, np.stack([grey] * 3, -1))


def test_a_nan_anywhere_is_refused() -> None:
    values = np.zeros((12, 16), np.float32)
    values[7, 3] = np.nan
    with pytest.raises(InvalidImage, match="32-bit image holds values"):
        read(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("mode", "form", "times"),
    [("RGB", "PNG", 1.3), ("L", "PNG", 0.5), ("RGBA", "PNG", 2.3), ("P", "PNG", 1.5), ("F", "TIFF", 1.8)],
)
def test_memory_of_a_large_image(mode: str, form: str, times: float, tmp_path: Path) -> None:
    """In a process of its own, for Pillow's memory is not Python's: `times` what the pixels take at four bytes each."""
    image = Image.new(mode, (4000, 4000))
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    (tmp_path / "image").write_bytes(encode(image, form, **options))
    script = (
        "import re, sys\n"
        "from service.contract.bundle import Input\n"
        "from service.contract.images import load\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "size = Input(width_px=32, height_px=32, fit='stretch', resampling='bilinear')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "before = peak()\n"
        "load(data, size, max_pixels=50_000_000)\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "image")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < times * 4 * 4000 * 4000


# Bombs ---------------------------------------------------------------------------------------------------------------


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    data = encode(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def test_scans_of_a_jpeg_are_limited() -> None:
    assert read(scans(MAX_SCANS)).width_px == 64
    with pytest.raises(InvalidImage, match=f"the JPEG has {MAX_SCANS + 1} scans, the limit is {MAX_SCANS}"):
        read(scans(MAX_SCANS + 1))


@pytest.mark.parametrize(
    "text",
    [
        [(b"zTXt", b"k\0\0" + zlib.compress(bytes(32 * 2**20)))],
        [(b"iCCP", b"k\0\0" + zlib.compress(bytes(32 * 2**20)))],
        [(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(2**20 - 1))) for i in range(9)],
        [(b"iTXt", b"k%d\0\1\0\0\0" % i + zlib.compress(bytes(2**20 - 1))) for i in range(9)],
    ],
)
def test_compressed_text_of_a_png_is_limited(text: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidImage, match="damaged or cut short"):
        read(png(16, 12, 8, 2, PICTURE, extra=text))
    np.testing.assert_array_equal(read(png(16, 12, 8, 2, PICTURE, extra=[(b"tEXt", b"k\0short")])).pixels, PICTURE)


def test_sizes_claimed_inside_the_file_count() -> None:
    gif = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    screen, frame = bytearray(gif), bytearray(gif)
    screen[6:10] = struct.pack("<HH", 60_000, 60_000)
    at = gif.rindex(b",\0\0\0\0") + 5
    frame[at : at + 4] = struct.pack("<HH", 60_000, 60_000)
    jpeg = bytearray(encode(RGB, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    for data in (screen, frame, jpeg):
        with pytest.raises(InvalidImage, match="60000 x 60000 = 3600000000 pixels"):
            read(bytes(data))
