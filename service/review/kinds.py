"""The kind of an image file by its first bytes: the suffix of its name, and its media type."""

UNKNOWN = (".bin", "application/octet-stream")


def kind_of(data: bytes) -> tuple[str, str]:
    """(".jpg", "image/jpeg") and so on; UNKNOWN for what no service of ours has classified."""
    head = data[:16]
    for signature, suffix, media in (
        (b"\xff\xd8\xff", ".jpg", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", ".png", "image/png"),
        (b"GIF8", ".gif", "image/gif"),
        (b"BM", ".bmp", "image/bmp"),
        (b"II", ".tiff", "image/tiff"),
        (b"MM", ".tiff", "image/tiff"),
    ):
        if head.startswith(signature):
            return suffix, media
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp", "image/webp"
    if head[4:8] == b"ftyp":
        return (".avif", "image/avif") if head[8:12] in (b"avif", b"avis") else (".heic", "image/heic")
    return UNKNOWN
