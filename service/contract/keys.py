"""By what is an image known? A hash of its content, in splits and caches of training as in manifests."""

import hashlib


def content_key(content: bytes | memoryview) -> int:
    """64 bits of a hash: evenly spread, the same on every machine, so that an image is known by it."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def key_text(key: int) -> str:
    """A content key as manifests hold it: 16 hex digits."""
    return f"{key:016x}"
