"""A ledger and a store with kept images, written as the service writes them, without a service."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Manifest
from service.contract.decision import Verdict
from service.ledger.database import connect
from service.ledger.rows import Entry
from service.ledger.store import Store, key_of, store_at
from service.ledger.tables import Tables


class Given(NamedTuple):
    """A kept image: what it shows, its embedding, and whether it was rejected or is in the audit sample."""

    file: bytes
    embedding: NDArray[np.floating] | None
    decision: str = "reject"
    sampled: bool = False
    predicted: int = 0
    node: str | None = None  # that it was told


def picture(colour: tuple[int, int, int], number: int = 0) -> bytes:
    """A PNG of 32 by 24 pixels; `number` makes files of one colour differ."""
    image = Image.new("RGB", (32, 24), colour)
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 7))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colours(counts: dict[tuple[int, int, int], int], noise: float = 0.02, seed: int = 0) -> list[Given]:
    """So many images of each colour, whose embeddings are the colour's direction with some noise."""
    draw, found, number = np.random.default_rng(seed), [], 0
    for colour, count in counts.items():
        for _ in range(count):
            vector = np.array(colour, float) / np.linalg.norm(colour) + draw.normal(size=3) * noise
            found.append(Given(picture(colour, number), vector / np.linalg.norm(vector)))
            number += 1
    return found


def fill(where: str, store: Path, manifest: Manifest, given: Sequence[Given], start: int = 0) -> Store:
    """Write the images; the request of each is r<number>, from `start` on. Their store."""
    files = store_at(str(store))
    entries, now = [], time.time()
    for number, one in enumerate(given, start):
        verdict = Verdict(one.predicted, -3.0, one.decision, -5.5, "id95", "group", 0.02)  # type: ignore[arg-type]
        embedding = None if one.embedding is None else one.embedding.astype("<f2").tobytes()
        entries.append(
            Entry(now - 100 + number / 1000, f"r{number}", 0, manifest, {"energy": -3.0, "msp": 0.4}, verdict, None,
                  None, embedding=embedding, sample_rate=0.01 if one.sampled else None,
                  keep_probability=0.01 if one.sampled else 1.0, node=one.node)
        )  # fmt: skip
    database = connect(where)
    try:
        tables = Tables(database)
        for at in range(0, len(entries), 1000):
            tables.write(entries[at : at + 1000])
        for number, one in enumerate(given, start):
            key = key_of(one.file)
            files.put(key, one.file, _thumbnail(one.file))
            database.execute("UPDATE decisions SET image_key = ? WHERE request_id = ?", (key, f"r{number}"))
    finally:
        database.close()
    return files


def _thumbnail(file: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(file)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()
