"""service/contract/images/limits.py: memory known from the header, against what decoding takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.contract.images import decoded_bytes
from tests.service.contract.test_images import encode, target

SCRIPT = r"""
import re, sys
from service.contract.bundle import Input
from service.contract.images import decoded_bytes, load
data = open(sys.argv[1], 'rb').read()
size = Input(width_px=32, height_px=32, fit='stretch', resampling='bilinear')
try:
    load(data[:200], size, max_pixels=1)  # brings the decoder into the process
except Exception:
    pass
peak = lambda: int(re.search(r'VmHWM:\s*(\d+)', open('/proc/self/status').read())[1]) * 1024
before = peak()
load(data, size, max_pixels=50_000_000)
print(peak() - before, decoded_bytes(data, size))
"""


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_lzw"}),
        ("I;16", "TIFF", {"compression": "tiff_lzw"}),
        ("F", "TIFF", {}),
        ("RGB", "AVIF", {"speed": 10}),
        ("RGBA", "WEBP", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {}),
    ],
)
def test_decoded_bytes_are_those_that_decoding_takes(
    mode: str, form: str, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(encode(Image.new(mode, (3500, 3500)), form, **options))
    check(tmp_path)


def test_decoded_bytes_of_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason='pip install "tailguard[heif]"')
    heif.register_heif_opener()
    (tmp_path / "image").write_bytes(encode(Image.new("RGB", (3500, 3500)), "HEIF"))
    check(tmp_path)


def check(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "image")]
    grown, told = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert grown < 1.25 * told + 8 * 2**20
    assert told < 3 * grown + 16 * 2**20


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0" + bytes(8)])
def test_decoded_bytes_of_what_is_no_image_are_none(data: bytes) -> None:
    assert decoded_bytes(data, target(16, 12)) == 0
