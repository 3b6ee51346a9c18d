"""What is done to an intact file before it is decoded. Deterministic: the same index and seed give the same bytes."""

import random
import struct
import zlib
from collections.abc import Callable, Mapping

HEADER_BYTES = 96  # where formats keep sizes, depths and offsets
VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(seeds: Mapping[str, bytes], seed: int, index: int) -> tuple[str, bytes]:
    """Input number `index`: which seed and mutators made it, and its bytes."""
    rng = random.Random(f"{seed}:{index}")
    name = rng.choice(list(seeds))
    data, done = bytearray(seeds[name]), [name]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutate = rng.choice(MUTATORS)
        mutate(rng, data)
        done.append(mutate.__name__)
    if rng.random() < 0.5 and data.startswith(b"\x89PNG"):
        _true_checksums(data)  # or most damage to a PNG would end at a checksum, before any decoder
        done.append("true checksums")
    return " ".join(done), bytes(data)


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        if data:
            data[rng.randrange(min(HEADER_BYTES, len(data)))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def set_number(rng: random.Random, data: bytearray) -> None:
    """An extreme value in 1, 2 or 4 bytes of the header, either way round."""
    width, order = rng.choice((1, 2, 4)), rng.choice("<>")
    if len(data) >= 4:
        at = rng.randrange(min(HEADER_BYTES, len(data) - 3))
        value = (rng.choice(VALUES) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
        data[at : at + width] = struct.pack(order + {1: "B", 2: "H", 4: "I"}[width], value)


def drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 4, 50))]


def repeat(rng: random.Random, data: bytearray) -> None:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 12, 200))
    data[at:at] = data[at : at + length] * rng.choice((1, 2, 20))


def insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))


def overwrite(rng: random.Random, data: bytearray) -> None:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 32))
    data[at : at + length] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * length


def append(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.choice((1, 100, 5_000)))


MUTATORS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip_bits, flip_bits, flip_header_bits, flip_header_bits, cut, set_number, set_number, drop, repeat, insert,
    overwrite, append,
)  # fmt: skip


def _true_checksums(data: bytearray) -> None:
    """Give every chunk of a PNG the checksum of what it now holds."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
