"""A class-folder data set of small pictures, each different, for a test to add faults to."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.audit.report import Part, Report

COUNTS = {"ant": 12, "bee": 6, "cow": 2}


def picture(seed: int, *, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth colour picture of its own, width x height px."""
    coarse = np.random.default_rng(seed).integers(40, 200, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


def save(path: Path, seed: int, **size: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path)
    return path


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target


def write_folder(folder: Path) -> Path:
    """12, 6 and 2 training images and 2 test images of each class, all different."""
    seed = 0
    for split, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 2))):
        for name, n in counts.items():
            for i in range(n):
                save(folder / split / name / f"{i:02}.png", seed := seed + 1)
    return folder


def part(report: Report, name: str) -> Part:
    return next(p for p in report.parts if p.name == name)


def copies(report: Report) -> dict[tuple[str, str], list[tuple[str, str]]]:
    return {(c.first, c.second): c.examples for c in report.copies}


def chosen(report: Report) -> dict[str, Any]:
    return {s.name: s.value for s in report.advice.settings}
