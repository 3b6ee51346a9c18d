"""Which kinds of TIFF are known right, by the header of the page.

Pillow decides by six tags and lets through combinations that it then unpacks wrongly. Here a page is of a kind that
Pillow reads right (`by_pillow`), of one that tiff.py unpacks itself (`by_us`), or refused by name (`words`).
"""

from service.contract.images.tiff_header import CMYK_INKS, Page

D50 = (0.3457, 0.3585)  # x, y of the white of print
COMPRESSIONS = {
    1: "uncompressed", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old-style JPEG", 7: "JPEG",
    8: "deflate", 32773: "PackBits", 32809: "ThunderScan", 32946: "deflate", 34676: "SGI LogL", 34677: "SGI LogLuv",
    34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG of DNG", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
PHOTOMETRICS = {
    0: "grey, white is zero", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr",
    8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "colour filter array of a camera", 32844: "LogL", 32845: "LogLuv",
    34892: "linear raw of a camera",
}  # fmt: skip
FORMATS = {1: "unsigned", 2: "signed", 3: "float", 4: "undefined", 5: "complex integer", 6: "complex float"}
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples per pixel without extra ones
BYTEWISE = {1, 5, 8, 32773, 32946, 34925, 50000}  # compressions of bytes, whatever these mean
ASSOCIATED, UNASSOCIATED = 1, 2  # values of ExtraSamples; 0 is unspecified
UNSIGNED_BITS = {1, 2, 4, 6, 8, 10, 12, 14, 16, 32}


def by_us(page: Page) -> bool:
    """Whether tiff.py unpacks this kind: any layout of whole values whose meaning the header settles."""
    bits, form = page.bits[0], page.formats[0]
    if page.compression not in BYTEWISE or len(set(page.bits)) > 1 or len(set(page.formats)) > 1:
        return False
    depth = {1: bits in UNSIGNED_BITS, 2: bits in (16, 32), 3: bits in (16, 32, 64)}.get(form, False)
    layout = page.planar in (1, 2) and page.fill_order in (1, 2) and page.predictor in (1, 2, 3)
    if page.predictor == 2 and page.compression not in (1, 32773):
        layout &= bits in (8, 16, 32) and form != 3
    if page.predictor == 3 and page.compression not in (1, 32773):
        layout &= form == 3
    if page.fill_order == 2 and bits > 8:
        layout = False  # writers disagree on which bits of a larger value turn round
    return depth and layout and _samples_known(page)


def _samples_known(page: Page) -> bool:
    """Whether each sample has a known meaning."""
    colours = COLOURS.get(page.photometric)
    if colours is None or page.photometric in (6, 8):
        return False
    if page.photometric == 3:
        bits = page.bits[0]
        if page.formats[0] != 1 or bits > 16 or len(page.colormap) != 3 << bits:
            return False
    if page.photometric == 5 and (page.inks != CMYK_INKS or page.formats[0] != 1 or page.bits[0] > 16):
        return False
    if page.extras is None:
        return page.samples == colours or (page.photometric == 2 and page.samples == 4)
    named = [x for x in page.extras if x]
    if page.photometric == 5 and named:
        return False  # alpha of CMYK: programs disagree on what lies under it
    return page.samples == colours + len(page.extras) and len(named) <= 1 and all(x in (0, 1, 2) for x in page.extras)


def by_pillow(page: Page) -> bool:
    """Whether Pillow, or libtiff below it, reads this kind right: those whose codec knows what the samples mean."""
    eight = set(page.bits) == {8} and set(page.formats) == {1}
    plain = page.extras is None and page.samples == COLOURS.get(page.photometric)
    if page.compression in (2, 3, 4):
        return page.photometric in (0, 1) and page.bits == (1,) and page.samples == 1
    if page.compression == 7:
        return eight and plain and page.photometric in (0, 1, 2, 5, 6) and (page.planar == 1 or page.samples == 1)
    if page.compression == 6:
        return eight and page.photometric in (2, 6) and page.planar == 1
    if page.photometric in (1, 2) and page.compression in BYTEWISE - {1}:
        return eight and plain and page.planar == 1 and page.fill_order == 1
    if page.photometric == 6:
        return page.compression in BYTEWISE - {1} and eight and plain and page.planar == 1
    if page.photometric == 8:
        if page.white is not None and max(abs(page.white[0] - D50[0]), abs(page.white[1] - D50[1])) > 0.002:
            return False  # Pillow takes D50 for given
        return page.compression in BYTEWISE and eight and plain and page.planar == 1
    return False


def words(page: Page) -> str:
    """The kind in words, for a refusal."""
    bits = str(page.bits[0]) if len(set(page.bits)) == 1 else "+".join(map(str, page.bits))
    form = FORMATS.get(page.formats[0], f"of sample format {page.formats[0]}")
    found = [
        PHOTOMETRICS.get(page.photometric, f"photometric {page.photometric}"),
        f"{page.samples} x {bits} bits {form}",
        COMPRESSIONS.get(page.compression, f"compression {page.compression}"),
    ]
    if page.extras:
        found.append(f"extra samples {', '.join(map(str, page.extras))}")
    if page.samples > 1:
        found.append("planes apart" if page.planar == 2 else "pixel by pixel")
    if page.predictor != 1:
        found.append(f"predictor {page.predictor}")
    return "; ".join(found)


def alpha_of(page: Page) -> int | None:
    """Position of the alpha sample, where ExtraSamples name one. Four samples of RGB without the tag are RGBA."""
    colours = COLOURS[page.photometric]
    if page.extras is None:
        return 3 if page.photometric == 2 and page.samples == 4 else None
    return next((colours + i for i, x in enumerate(page.extras) if x in (ASSOCIATED, UNASSOCIATED)), None)
