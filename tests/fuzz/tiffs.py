"""TIFFs written by hand, of kinds that Pillow does not write: any tags around packed pieces."""

import struct
from collections.abc import Sequence

SHORT, LONG = 3, 4


def tiff(
    width: int,
    height: int,
    pieces: Sequence[bytes],
    *,
    bits: int = 8,
    samples: int = 1,
    photometric: int = 1,
    compression: int = 1,
    planar: int = 1,
    form: int = 1,
    order: str = "<",
    extras: Sequence[int] = (),
    colormap: Sequence[int] = (),
    predictor: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    more: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> bytes:
    """One page. `pieces`: strips of `rows` rows, or tiles, packed; `form`: 1 unsigned, 2 signed, 3 float values.

    `more`: further tags as number, type (3 or 4) and values; they replace those of the same number.
    """
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [bits] * samples), 259: (SHORT, [compression]),
        262: (SHORT, [photometric]), 277: (SHORT, [samples]), 284: (SHORT, [planar]), 317: (SHORT, [predictor]),
        339: (SHORT, [form] * samples),
    }  # fmt: skip
    if tile:
        tags |= {322: (LONG, [tile[0]]), 323: (LONG, [tile[1]])}
    else:
        tags[278] = (LONG, [rows or height])
    if extras:
        tags[338] = (SHORT, extras)
    if colormap:
        tags[320] = (SHORT, colormap)
    at = 8
    offsets = [at + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    tags[324 if tile else 273] = (LONG, offsets)
    tags[325 if tile else 279] = (LONG, [len(piece) for piece in pieces])
    tags |= {number: (kind, values) for number, kind, values in more}
    body = b"".join(pieces)
    body += bytes(len(body) % 2)
    directory_at = at + len(body)
    tail_at = directory_at + 2 + 12 * len(tags) + 4
    directory, tail = struct.pack(order + "H", len(tags)), b""
    for number, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        where = content.ljust(4, b"\0")
        if len(content) > 4:
            where = struct.pack(order + "I", tail_at + len(tail))
            tail += content + bytes(len(content) % 2)
        directory += struct.pack(order + "HHI", number, kind, len(values)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory_at)
    return head + body + directory + bytes(4) + tail
