"""Kinds of TIFF, PNG, JPEG, BMP, AVIF and HEIC: each read right, or refused by name."""

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.contract.images import av1, heif, load
from service.errors import InvalidImage, UnsupportedMedia
from tests.fuzz.seeds import with_chunks
from tests.fuzz.tiffs import LONG, SHORT, tiff
from tests.service.contract.test_images import LIMIT, PICTURE, RGB, chunk, encode, picture, png, read, target

WIDTH, HEIGHT = 16, 12
RAMP = np.stack([PICTURE[..., 0], PICTURE[..., 1], PICTURE[..., 2], 255 - PICTURE[..., 0]], -1) / 255


def packed(values: NDArray[Any], bits: int, order: str) -> bytes:
    """Whole values [H, W, samples] as a TIFF stores their rows."""
    rows = values.reshape(values.shape[0], -1)
    if bits in (8, 16, 32):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    places = (rows.astype(np.uint32)[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(places.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def deflated(raw: bytes, compression: int) -> bytes:
    return zlib.compress(raw) if compression == 8 else raw


def whole(bits: int, samples: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Stored values of so many bits, and what they are from 0 to 255."""
    values = np.rint(RAMP[..., :samples] * (2.0**bits - 1)).astype(np.uint64)
    return values, values / (2.0**bits - 1) * 255


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(("photometric", "samples"), [(0, 1), (1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 32])
def test_tiff_of_every_depth_and_layout(
    bits: int, photometric: int, samples: int, planar: int, order: str, compression: int
) -> None:
    values, right = whole(bits, samples)
    planes = [values] if planar == 1 else [values[..., i : i + 1] for i in range(samples)]
    strips = [deflated(packed(p[top : top + 5], bits, order), compression) for p in planes for top in (0, 5, 10)]
    options: dict[str, Any] = {"bits": bits, "samples": samples, "photometric": photometric, "planar": planar}
    data = tiff(WIDTH, HEIGHT, strips, **options, compression=compression, order=order, rows=5)
    if photometric == 5 and bits == 32:
        with pytest.raises(InvalidImage, match="this kind of TIFF is not read: CMYK; 4 x 32 bits unsigned"):
            read(data)
        return
    if photometric == 0:
        right = 255 - right
    if photometric == 5:
        right = (255 - right[..., :3]) * (255 - right[..., 3:]) / 255
    found = read(data).pixels
    np.testing.assert_allclose(found, np.broadcast_to(right, found.shape), atol=2 if photometric == 5 else 0.51)


@pytest.mark.parametrize(("extra", "kind"), [(0, "ignored"), (1, "associated"), (2, "apart")])
@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_of_a_tiff(bits: int, samples: int, extra: int, kind: str) -> None:
    alpha = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1)
    colour = RAMP[..., : samples - 1]
    held = np.concatenate([colour * alpha if kind == "associated" else colour, alpha], -1)
    full = 2**bits - 1
    raw = packed(np.rint(held * full), bits, "<")
    data = tiff(WIDTH, HEIGHT, [raw], bits=bits, samples=samples, photometric=1 if samples == 2 else 2, extras=[extra])
    right = 255 * (colour if kind == "ignored" else colour * alpha + 1 - alpha)
    found = read(data).pixels
    np.testing.assert_allclose(found, np.broadcast_to(right, found.shape), atol=2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("scale", [1, 256, 257])
def test_palette_of_a_tiff(bits: int, scale: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 2**bits))
    colours[0, 0] = 255
    index = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1) % 2**bits
    colormap = (colours * scale).ravel().tolist()
    data = tiff(WIDTH, HEIGHT, [packed(index, bits, "<")], bits=bits, photometric=3, colormap=colormap)
    np.testing.assert_array_equal(read(data).pixels, colours.T[index[..., 0]])


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "i4"])
def test_floats_and_signed_values_of_a_tiff(kind: str, samples: int, compression: int) -> None:
    values = (RAMP[..., :samples] if kind[0] == "f" else np.rint(RAMP[..., :samples] * 255)).astype(f"<{kind}")
    options: dict[str, Any] = {"bits": 8 * int(kind[1]), "form": 3 if kind[0] == "f" else 2, "samples": samples}
    data = tiff(
        WIDTH, HEIGHT, [deflated(values.tobytes(), compression)], **options, compression=compression,
        photometric=1 if samples == 1 else 2,
    )  # fmt: skip
    found = read(data).pixels
    np.testing.assert_allclose(found, np.broadcast_to(PICTURE[..., :samples], found.shape), atol=1)


@pytest.mark.parametrize(("bits", "predictor"), [(8, 2), (16, 2), (32, 2), (16, 3), (32, 3)])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_predictors_and_tiles_of_a_tiff(order: str, samples: int, bits: int, predictor: int) -> None:
    """Two tiles of 16 x 16 that reach beyond a picture of 20 x 12."""
    y, x = np.mgrid[0:16, 0:32]
    plane = np.stack([x / 31, y / 15, (x + y) / 46], -1)[..., :samples]
    tiles, right = [], plane[:12, :20] * 255
    for left in (0, 16):
        tile = plane[:, left : left + 16]
        if predictor == 2:
            whole_values = np.rint(tile * (2.0**bits - 1)).astype(f"u{bits // 8}")
            before = np.concatenate([np.zeros_like(whole_values[:, :1]), whole_values[:, :-1]], 1)
            raw = (whole_values - before).astype(f"{order}u{bits // 8}").tobytes()
        else:
            floats = tile.astype(f">f{bits // 8}").reshape(16, 16 * samples)
            apart = floats.view(np.uint8).reshape(16, -1, bits // 8).transpose(0, 2, 1).reshape(16, -1, samples)
            raw = (apart - np.concatenate([np.zeros_like(apart[:, :1]), apart[:, :-1]], 1)).tobytes()
        tiles.append(zlib.compress(raw))
    data = tiff(
        20, 12, tiles, bits=bits, samples=samples, photometric=1 if samples == 1 else 2, compression=8, order=order,
        predictor=predictor, form=1 if predictor == 2 else 3, tile=(16, 16),
    )  # fmt: skip
    found = read(data, 20, 12).pixels
    np.testing.assert_allclose(found, np.broadcast_to(right, found.shape), atol=1)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("colour filter array of a camera", {"photometric": 32803}),
        ("1 x 24 bits unsigned", {"bits": 24}),
        ("8 bits signed", {"form": 2}),
        ("complex float", {"form": 6, "bits": 64}),
        ("JPEG 2000", {"compression": 34712}),
        ("LERC", {"compression": 34887}),
        ("compression 9999", {"compression": 9999}),
        ("YCbCr; 3 x 8 bits unsigned; uncompressed", {"photometric": 6, "samples": 3}),
        ("RGB; 3 x 5[+]6[+]5 bits", {"photometric": 2, "samples": 3, "more": [(258, SHORT, [5, 6, 5])]}),
        ("2 x 8 bits unsigned; uncompressed; pixel by pixel", {"samples": 2}),
        ("extra samples 1, 2", {"samples": 5, "photometric": 2, "extras": [1, 2]}),
        ("CMYK.*extra samples 2", {"samples": 5, "photometric": 5, "extras": [2]}),
        ("CMYK", {"samples": 4, "photometric": 5, "more": [(332, SHORT, [2])]}),
        ("palette", {"photometric": 3, "colormap": [1, 2, 3]}),
        ("grey; 1 x 16 bits", {"bits": 16, "more": [(266, SHORT, [2])]}),
        ("predictor 2", {"bits": 12, "compression": 8, "predictor": 2}),
    ],
)
def test_other_kinds_of_tiff_are_refused_by_name(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage, match=f"this kind of TIFF is not read: .*{words}"):
        read(tiff(WIDTH, HEIGHT, [bytes(9000)], **options))


def test_lab_of_a_tiff_is_read_where_its_white_is_that_of_print() -> None:
    """L* 58.8, a* 30, b* -30, by hand to sRGB; the white point is a pair of rationals, kind 5 of a tag."""
    pixels = struct.pack("Bbb", 150, 30, -30) * (WIDTH * HEIGHT)
    data = tiff(WIDTH, HEIGHT, [pixels], samples=3, photometric=8)
    np.testing.assert_allclose(read(data).pixels[0, 0].astype(int), (174, 123, 195), atol=1)
    for white, right in (((3457, 10000, 3585, 10000), True), ((3127, 10000, 3290, 10000), False)):
        with_white = bytearray(tiff(WIDTH, HEIGHT, [pixels], samples=3, photometric=8, more=[(318, LONG, white)]))
        at = with_white.index(struct.pack("<HHI", 318, LONG, 4))
        struct.pack_into("<HHI", with_white, at, 318, 5, 2)
        if right:
            assert read(bytes(with_white)).width_px == WIDTH
        else:
            with pytest.raises(InvalidImage, match="this kind of TIFF is not read: CIELab"):
                read(bytes(with_white))


def test_bits_of_a_byte_the_other_way_round() -> None:
    raw = np.packbits(np.unpackbits(PICTURE[..., :1], axis=2), axis=2, bitorder="little").tobytes()
    data = tiff(WIDTH, HEIGHT, [raw], more=[(266, SHORT, [2])])
    np.testing.assert_array_equal(read(data).pixels[..., 0], PICTURE[..., 0])


@pytest.mark.parametrize(
    "options",
    [
        {"more": [(273, LONG, [10**6])]},
        {"rows": 4},
        {"tile": (0, 0)},
        {"bits": 16, "compression": 8, "more": [(279, LONG, [2**31])]},
        {"more": [(256, LONG, [0])]},
    ],
)
def test_damaged_tiff(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage):
        read(tiff(WIDTH, HEIGHT, [bytes(100)], **options))


@pytest.mark.parametrize("nested", [False, True])
def test_full_page_of_a_tiff_whose_first_is_reduced(nested: bool) -> None:
    small, full = Image.new("RGB", (8, 6), "red"), tiff(WIDTH, HEIGHT, [PICTURE.tobytes()], samples=3, photometric=2)
    thumbnail = bytearray(
        tiff(8, 6, [small.tobytes()], samples=3, photometric=2, more=[(254, LONG, [1]), (330, LONG, [0])])
    )
    page = shifted(full, len(thumbnail))
    at = len(thumbnail) + struct.unpack_from("<I", full, 4)[0]
    first = struct.unpack_from("<I", thumbnail, 4)[0]
    entries = struct.unpack_from("<H", thumbnail, first)[0]
    if nested:
        where = next(
            first + 2 + 12 * i
            for i in range(entries)
            if thumbnail[first + 2 + 12 * i : first + 4 + 12 * i] == b"\x4a\1"
        )
        struct.pack_into("<I", thumbnail, where + 8, at)
    else:
        struct.pack_into("<I", thumbnail, first + 2 + 12 * entries, at)
    found = read(bytes(thumbnail) + page)
    np.testing.assert_array_equal(found.pixels, PICTURE)
    assert (found.width_px, found.height_px) == (WIDTH, HEIGHT)


def shifted(data: bytes, by: int) -> bytes:
    """A file of tests.fuzz.tiffs, little-endian, moved to another place: what its tags point to moves along."""
    moved = bytearray(data)
    at = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, at)[0]):
        tag, kind, count, value = struct.unpack_from("<HHII", data, at + 2 + 12 * i)
        if tag == 273 or count * (2 if kind == SHORT else 4) > 4:
            struct.pack_into("<I", moved, at + 2 + 12 * i + 8, value + by)
    return bytes(moved)


def test_orientation_in_xmp_alone_is_followed() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    upright = picture(12, 16)
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    files = [encode(stored, "WEBP", xmp=xmp, lossless=True), encode(stored, "JPEG", xmp=xmp, quality=98)]
    raw = np.asarray(stored).astype(np.uint16) * 257
    files.append(tiff(16, 12, [raw.tobytes()], bits=16, samples=3, photometric=2, more=[(700, SHORT, pairs(xmp))]))
    for data in files:
        np.testing.assert_allclose(read(data, 12, 16).pixels.astype(int), upright, atol=20)


def pairs(text: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(text) // 2}H", text[: len(text) // 2 * 2]))


# PNG ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 2), (4, 11), (8, 77), (16, 3000)])
def test_transparent_value_of_a_grey_png(depth: int, value: int) -> None:
    values = np.zeros((HEIGHT, WIDTH, 1), np.uint32)
    values[:, 8:] = value
    values[0, 0] = value ^ 1  # not far from it, and opaque
    rows = np.frombuffer(packed(values, depth, ">"), np.uint8).reshape(HEIGHT, -1)
    found = read(png(WIDTH, HEIGHT, depth, 0, rows, [(b"tRNS", struct.pack(">H", value))])).pixels[..., 0]
    assert set(found[:, 8:].flat) == {255}
    assert found[0, 0] == round((value ^ 1) / (2**depth - 1) * 255)


def test_transparent_colour_of_a_16_bit_png_counts_all_bits() -> None:
    values = np.full((HEIGHT, WIDTH, 3), 0x1234, ">u2")
    values[:, 8:, 2] = 0x1235
    found = read(png(WIDTH, HEIGHT, 16, 2, values, [(b"tRNS", struct.pack(">3H", 0x1234, 0x1234, 0x1235))])).pixels
    assert (set(found[:, :8].flat), set(found[:, 8:].flat)) == ({0x12}, {255})


def test_wrong_checksum_of_what_bears_on_no_pixel() -> None:
    data = with_chunks(encode(RGB, "PNG"), (b"tEXt", b"Title\0words"), (b"tIME", bytes(7)))
    np.testing.assert_array_equal(read(data.replace(b"words", b"wards")).pixels, PICTURE)
    hole = with_chunks(encode(RGB, "PNG"), (b"tRNS", bytes(6)))
    at = hole.index(b"tRNS")
    with pytest.raises(InvalidImage, match="checksum of its tRNS chunk is wrong"):
        read(hole[: at + 4] + b"\1" + hole[at + 5 :])
    with pytest.raises(InvalidImage, match="damaged"):
        read(data[:20] + b"\1" + data[21:])


def test_png_of_ios_is_refused_by_name() -> None:
    data = encode(RGB, "PNG")
    with pytest.raises(InvalidImage, match="optimised for iOS"):
        read(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:])


# JPEG -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
def test_jpeg_that_lacks_its_end_marker_alone(options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=85, **options)
    wanted = read(data).pixels
    for end in (b"", bytes(5)):
        np.testing.assert_array_equal(read(data[:-2] + end).pixels, wanted)
    for lost in (4, 10, len(data) // 3):
        with pytest.raises(InvalidImage, match="damaged or cut short"):
            read(data[:-lost])


def test_progressive_jpeg_that_lacks_its_last_scan() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", progressive=True)
    with pytest.raises(InvalidImage, match="damaged or cut short"):
        read(data[: data.rindex(b"\xff\xda")])


@pytest.mark.parametrize(
    ("marker", "bits", "words"),
    [(0xC3, 8, "lossless"), (0xF7, 8, "JPEG-LS"), (0xC1, 12, "12 bits a sample"), (0xC5, 8, "hierarchical")],
)
def test_other_kinds_of_jpeg_are_refused_by_name(marker: int, bits: int, words: str) -> None:
    data = bytearray(encode(RGB, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    with pytest.raises(InvalidImage, match=f"this kind of JPEG is not read: {words}"):
        read(bytes(data))


# BMP ------------------------------------------------------------------------------------------------------------------


def bmp(bits: int, compression: int, masks: tuple[int, ...], pixels: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<4I", *masks)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 108) + head.ljust(108, b"\0") + pixels


MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def test_alpha_of_a_bmp() -> None:
    values = np.concatenate([PICTURE[::-1, :, ::-1], np.zeros((HEIGHT, WIDTH, 1), np.uint8)], -1)
    np.testing.assert_array_equal(read(bmp(32, 3, MASKS, values.tobytes())).pixels, PICTURE)
    values[0, 0, 3] = 255
    found = read(bmp(32, 3, MASKS, values.tobytes())).pixels
    assert found[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(found[-1, 0], PICTURE[-1, 0])


@pytest.mark.parametrize(
    ("bits", "compression", "masks", "words"),
    [
        (16, 3, (0xF00, 0xF0, 0xF, 0xF000), "16 bits with alpha"),
        (32, 3, (0x3FF00000, 0xFFC00, 0x3FF, 0), "bitfields layout"),
        (24, 4, (0, 0, 0, 0), "JPEG inside"),
    ],
)
def test_other_kinds_of_bmp_are_refused_by_name(
    bits: int, compression: int, masks: tuple[int, int, int, int], words: str
) -> None:
    with pytest.raises(InvalidImage, match=f"this kind of BMP is not read: .*{words}"):
        read(bmp(bits, compression, masks, bytes(1000)))


# AVIF and HEIC --------------------------------------------------------------------------------------------------------


def heic(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_heif", reason='pip install "tailguard[heif]"').register_heif_opener()
    return encode(image, "HEIF", **options)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_photographs_of_telephones(form: str) -> None:
    upright = Image.fromarray(picture(64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    options: dict[str, Any] = {"quality": 95, "exif": exif.tobytes()}
    data = encode(stored, form, **options) if form == "AVIF" else heic(stored, **options)
    loaded = read(data, 64, 48)
    assert (loaded.width_px, loaded.height_px) == (64, 48)
    np.testing.assert_allclose(loaded.pixels.astype(int), np.asarray(upright), atol=12)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_alpha_and_limits_of_avif_and_heic(form: str) -> None:
    clear = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    data = encode(clear, form) if form == "AVIF" else heic(clear)
    assert read(data).pixels.min() >= 253
    name, share = ("AVIF", 4) if form == "AVIF" else ("HEIC", 2)
    assert load(data, target(16, 12), max_pixels=share * 64 * 48).width_px == 64
    with pytest.raises(InvalidImage, match=f"64 x 48 = 3072 pixels, the limit for {name} is 3071"):
        load(data, target(16, 12), max_pixels=share * 64 * 48 - 1)
    with pytest.raises(InvalidImage):
        read(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_size_that_the_container_hides(form: str) -> None:
    """The container says 16 x 16; the coded picture is larger."""
    large = Image.new("RGB", (512, 512), "red")
    data = bytearray(encode(large, form) if form == "AVIF" else heic(large))
    at = data.index(b"ispe")
    struct.pack_into(">II", data, at + 8, 16, 16)
    with pytest.raises(InvalidImage, match=r"512 ?x ?512"):
        load(bytes(data), target(16, 12), max_pixels=4 * 64 * 64)


def test_sequence_headers_of_still_and_moving_pictures() -> None:
    for options in ({}, {"save_all": True, "append_images": [Image.new("RGB", (300, 200), "blue")]}):
        data = encode(Image.new("RGB", (300, 200)), "AVIF", **options)
        pieces = list(av1.coded_pieces(data, list(heif._boxes(data))))
        assert {size for piece in pieces for size in av1.sizes(piece)} == {(300, 200)}


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(RGB.resize((64, 48)))
    monkeypatch.setattr(heif, "_registered", False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedMedia, match=r'pip install "tailguard\[heif\]"'):
        read(data)


def test_code_points_of_avif_are_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(RGB, "AVIF", quality=100)
    at = data.index(b"nclx") + 4
    wide = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    assert np.abs(read(wide).pixels.astype(int) - read(data).pixels).max() > 10
    with pytest.raises(InvalidImage, match=r"this kind of AVIF is not read: high dynamic range \(PQ\)"):
        read(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"%PDF-1.7", "a PDF"), (b"8BPS\0\1", "a Photoshop file")],
)
def test_foreign_formats_are_named(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"the content is {words}.*: send one of JPEG, PNG"):
        load(data, target(16, 12), max_pixels=LIMIT)


def test_the_page_on_kinds_is_that_of_the_code() -> None:
    from service.contract.images import table

    page = Path(table.__file__).parent.parent / "IMAGES.md"
    assert page.read_text() == table.markdown(), "python -m service.contract.images.table > service/contract/IMAGES.md"
