"""Images to calibrate or to test on that are nearly images to learn from (a burst or a video in two parts), and images
that are nearly one of another class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.audit import duplicates
from training.audit.duplicates import ImagePart, Near
from training.data.listing import Listing
from training.data.photographs import Files
from training.data.scan import scan

WHY = {
    "calibrate": "thresholds set on what was learned are too tight, and more is refused in service than they promise",
    "test": "figures are better than the truth",
}


def notes(files: Files, cache: Path) -> list[str]:
    """Sentences for a person; `cache` is the file that keeps the scan of these images."""
    learned, *others = _parts([files.train, files.calibration, files.test], cache)
    said = []
    for purpose, part in zip(WHY, others, strict=True):
        pairs = [p for p in duplicates.near(learned, part) if p.full_cosine > duplicates.SAME_COSINE]
        if pairs:
            first = f"{part.names[pairs[0].second]} and {learned.names[pairs[0].first]}"
            said.append(f"{len(pairs)} of {len(part.names)} images to {purpose} on are near duplicates of training "
                        f"images ({first}): {WHY[purpose]}. Keep in one part what was taken together")  # fmt: skip
    return said + duplicates.two_classes_note(*_of_two_classes(files, learned, others[0]))


def _of_two_classes(files: Files, train: ImagePart, held: ImagePart) -> tuple[ImagePart, list[Near]]:
    """The images that are learned from or calibrated on, and the pairs of two classes; equal files are told before."""
    keys = np.concatenate([files.keys["train"], files.keys["calibration"]])
    labels = np.concatenate([files.train.labels, files.calibration.labels])
    part = ImagePart("", np.concatenate([train.pixels, held.pixels]), train.names + held.names, labels)
    return part, [p for p in duplicates.of_two_classes(part) if keys[p.first] != keys[p.second]]


def _parts(listings: Sequence[Listing], cache: Path) -> Iterator[ImagePart]:
    """The images of each as the scan has seen them, which is read once for all."""
    paths = [path for listing in listings for path in listing.paths]
    seen = scan(paths, cache=cache)
    begin = 0
    for listing in listings:
        end = begin + len(listing.paths)
        rows = np.flatnonzero((begin <= seen.index) & (seen.index < end))
        yield ImagePart("", seen.small[rows], [paths[i] for i in seen.index[rows].tolist()])
        begin = end
