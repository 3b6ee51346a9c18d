"""The kinds of image files that are read, converted and refused, as Markdown: service/contract/IMAGES.md.

python -m service.contract.images.table > service/contract/IMAGES.md
"""

from service.contract.images import bmp, jpeg, limits, profiles, tiff, tiff_kinds
from service.contract.images.reading import FORMATS

HEAD = "| kind of file | what becomes of it |\n|---|---|\n"


def markdown() -> str:
    """The whole page; what can be is taken from the tables that decide."""
    parts = [
        "# Which images are read, converted and refused\n",
        "Written by `python -m service.contract.images.table`; a test holds it to the code. Training, bulk scoring and "
        "the service read images by the same function, so what is said here is true of all three. A file is read "
        "right or refused with a message that names its kind; where a message says *damaged*, it is.\n",
        f"Formats: {', '.join(FORMATS)}. The content decides, not the name. Other content is refused with 415, an "
        "image that is not read with 422.\n",
    ]
    for title, rows in _sections():
        parts.append(f"## {title}\n\n{HEAD}" + "".join(f"| {kind} | {fate} |\n" for kind, fate in rows))
    return "\n".join(parts)


def _sections() -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        ("All formats", _common()),
        ("JPEG", _jpeg()),
        ("PNG", _png()),
        ("TIFF", _tiff()),
        ("BMP, GIF, WebP", _simple()),
        ("AVIF and HEIC", _phones()),
    ]


def _common() -> list[tuple[str, str]]:
    mib = profiles.MAX_PROFILE_BYTES // 2**20
    shares = ", ".join(f"{kind} 1/{divisor}" for kind, divisor in limits.DIVISORS.items())
    return [
        ("orientation in EXIF, or where EXIF has none in XMP", "turned upright"),
        ("alpha, and a transparent colour or palette entry", "laid on white"),
        ("several frames or pages", "the first (of a TIFF: the first that is no reduced picture)"),
        ("grey, palette, CMYK", "to RGB"),
        ("16 bits a sample", "scaled to 8"),
        ("colour profile (ICC) of RGB, grey or CMYK", "converted to sRGB by LittleCMS; 16 bits are scaled to 8 before"),
        (f"profile within {profiles.TOLERANCE} of 255 levels of sRGB, or none", "pixels unchanged"),
        ("damaged profile, or one of other channels than the pixels", "taken for sRGB, as browsers do"),
        (f"profile above {mib} MiB", "refused"),
        ("more pixels than the limit", f"refused from the header; lower limits: {shares}"),
        (f"more than {limits.DEEP_BYTES} bytes a stored pixel (TIFF)", "the limit is lower in proportion"),
        ("cut short, damaged", "refused"),
    ]


def _jpeg() -> list[tuple[str, str]]:
    others = ", ".join(dict.fromkeys([*jpeg.KINDS.values(), "hierarchical"]))
    return [
        ("baseline, progressive, arithmetic-coded; grey, YCbCr, RGB, CMYK, YCCK", "read"),
        ("multi-picture (MPO)", "its first picture"),
        ("end marker missing, all pixels there", "read"),
        (f"{others}; 12 bits; 2 or more than 4 components", "refused by name"),
        (f"more than {limits.MAX_SCANS} scans", "refused"),
    ]


def _png() -> list[tuple[str, str]]:
    return [
        ("every depth and colour type, interlaced, animated", "read"),
        ("transparent colour (tRNS) of 1 to 16 bits", "laid on white; all bits of a sample count"),
        ("gAMA and cHRM, without sRGB, iCCP or cICP", "converted; sRGB's own gAMA (0.45455) leaves pixels unchanged"),
        ("cICP", "primaries of sRGB, Display P3 and BT.2020 converted; PQ and HLG refused by name"),
        ("wrong checksum of an ancillary chunk before the pixels", "the chunk is left out; refused if it is tRNS"),
        ("optimised for iOS (CgBI)", "refused by name"),
    ]


def _tiff() -> list[tuple[str, str]]:
    names = sorted({tiff_kinds.COMPRESSIONS[c] for c in tiff_kinds.BYTEWISE})
    bits = ", ".join(map(str, sorted(tiff_kinds.UNSIGNED_BITS)))
    others = sorted(set(tiff_kinds.COMPRESSIONS.values()) - set(names) - {"JPEG", "old-style JPEG"})
    others = [name for name in others if not name.startswith("CCITT")]
    floats = ", ".join(f"{r:g}" for r in tiff.FLOAT_RANGES)
    integers = ", ".join(f"{r:.0f}" for r in tiff.INTEGER_RANGES)
    return [
        (
            f"compressed by {', '.join(names)}; strips or tiles; planes together or apart; either byte order",
            "read, if:",
        ),
        (f"– grey (either polarity) or RGB of {bits} bits unsigned", "scaled by its own range"),
        ("– palette of 1 to 16 bits", "read; a colour map whose values all fit in 8 bits is taken as such"),
        ("– CMYK of up to 16 bits", "converted"),
        (
            "– signed integers of 16 and 32, unsigned of 32 bits",
            f"scaled by the narrowest of {integers} that holds them",
        ),
        ("– floats of 16, 32 and 64 bits", f"scaled by the narrowest of {floats} that holds them, else refused"),
        ("– with one alpha sample, associated or not; unspecified extra samples", "laid on white; left out"),
        ("– predictor 2 (8, 16, 32 bits) and 3 (floats)", "read"),
        ("JPEG of 8 bits, planes together; CCITT; YCbCr compressed; CIELab of 8 bits (D50)", "read by libtiff"),
        ("BigTIFF", "read"),
        ("WhitePoint, PrimaryChromaticities, TransferFunction of an RGB TIFF without a profile", "not used"),
        (f"{', '.join(others)}; camera raw (DNG); LogLuv; complex values; any other combination", "refused by name"),
    ]


def _simple() -> list[tuple[str, str]]:
    return [
        ("BMP of 1 to 32 bits, run-length encoded, OS/2", "read; the profile of version 5 is used"),
        ("BMP with an alpha mask", "alpha used; one that is 0 everywhere is none"),
        (f"BMP: {', '.join(bmp.KINDS.values())}; 16 bits with alpha; other bit fields", "refused by name"),
        ("GIF, animated GIF", "read; a profile inside is not used"),
        ("WebP lossy, lossless, animated, with alpha", "read"),
    ]


def _phones() -> list[tuple[str, str]]:
    return [
        ("AVIF of 8, 10 and 12 bits, grids, alpha, sequences", "read, scaled to 8 bits"),
        (
            "HEIC (HEIF with HEVC)",
            'read where `pip install "tailguard[heif]"` brought pillow-heif, else refused by name',
        ),
        ("rotation and mirroring boxes", "followed"),
        ("colours by code points (nclx)", "Display P3 and BT.2020 converted; PQ and HLG refused by name"),
        ("a part, or the coded picture, larger than the limit", "refused before it is decoded"),
        ("gain maps, depth maps, thumbnails, live photos' films", "left out"),
    ]


if __name__ == "__main__":
    print(markdown(), end="")
