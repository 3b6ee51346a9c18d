"""Images to calibrate or to test on that are nearly images to learn from: a burst or a video in two parts."""

from pathlib import Path

from training.audit import duplicates
from training.audit.duplicates import ImagePart
from training.data.listing import Listing
from training.data.photographs import Files
from training.data.scan import scan

WHY = {
    "calibrate": "thresholds set on what was learned are too tight, and more is refused in service than they promise",
    "test": "figures are better than the truth",
}


def notes(files: Files, cache: Path) -> list[str]:
    """Sentences for a person; `cache` is the file that keeps the scan of these images."""
    learned = _part(files.train, cache)
    said = []
    for purpose, listing in (("calibrate", files.calibration), ("test", files.test)):
        part = _part(listing, cache)
        pairs = [p for p in duplicates.near(learned, part) if p.full_cosine > duplicates.SAME_COSINE]
        if pairs:
            first = f"{part.names[pairs[0].second]} and {learned.names[pairs[0].first]}"
            said.append(f"{len(pairs)} of {len(part.names)} images to {purpose} on are near duplicates of training "
                        f"images ({first}): {WHY[purpose]}. Keep in one part what was taken together")  # fmt: skip
    return said


def _part(listing: Listing, cache: Path) -> ImagePart:
    seen = scan(listing.paths, cache=cache)
    return ImagePart("", seen.small, [listing.paths[i] for i in seen.index.tolist()])
