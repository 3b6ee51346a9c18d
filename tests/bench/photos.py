"""The images that are sent, the same bytes every time, and the HTTP requests around them."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

BOUNDARY = "tailguard-bench"
SEED = 0
MEDIA_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".gif": "image/gif", ".bmp": "image/bmp", ".tif": "image/tiff", ".tiff": "image/tiff",
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """The content of an image file."""

    name: str
    data: bytes
    media_type: str = "image/jpeg"


def photo() -> Photo:
    """640 x 427 pixels, about 155 KB."""
    return Photo("640x427", _jpeg(640, 427, noise=25.0, quality=91))


def small() -> Photo:
    """48 x 48 pixels, about 1.3 KB."""
    return Photo("48x48", _jpeg(48, 48, noise=12.0, quality=75))


def from_file(path: str) -> Photo:
    """Raises OSError when it cannot be read."""
    file = Path(path)
    return Photo(file.name, file.read_bytes(), MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream"))


def padded(source: Photo, size_bytes: int) -> Photo:
    """The same JPEG with zeros after its end, which decoders pass over. Raises ValueError when it is larger already."""
    if len(source.data) > size_bytes:
        raise ValueError(f"{source.name} has {len(source.data)} bytes, more than {size_bytes}")
    return Photo(f"{size_bytes / 1000:g} KB", source.data.ljust(size_bytes, b"\0"), source.media_type)


def raw_request(path: str, image: Photo, key: str | None = None) -> bytes:
    """One HTTP request whose body is the image itself."""
    return _request(path, image.media_type, image.data, key)


def form_request(path: str, image: Photo, key: str | None = None, field: str = "file") -> bytes:
    """One HTTP request whose body is a multipart form with the image, as curl -F and browsers send it."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\n'
        f"Content-Type: {image.media_type}\r\n\r\n"
    )
    body = head.encode() + image.data + f"\r\n--{BOUNDARY}--\r\n".encode()
    return _request(path, f"multipart/form-data; boundary={BOUNDARY}", body, key)


def _request(path: str, media_type: str, body: bytes, key: str | None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1", "Host: bench", "Accept: */*", f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
    ]  # fmt: skip
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _jpeg(width: int, height: int, *, noise: float, quality: int) -> bytes:
    """Slow gradients with a horizon and sensor-like noise: what makes a photo's JPEG as large as it is."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    sky = np.stack([90 + 80 * y, 130 + 60 * y, 210 - 40 * x], axis=-1)
    ground = np.stack([110 - 60 * x, 120 + 40 * np.sin(20 * x) * y, 60 + 30 * x], axis=-1)
    scene = np.where((y < 0.5 + 0.1 * np.sin(9 * x))[..., None], sky, ground)
    grain = np.random.default_rng(SEED).normal(0, noise, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
