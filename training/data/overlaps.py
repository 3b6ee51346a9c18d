"""What must not be one and the same: classes and outliers, images to learn from and to test on, labels of an image."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.data.choice import Part
from training.data.listing import Listing, some
from training.data.readers import DataError, Keys

OUTLIERS = ("outliers", "calibration_outliers")
LEARNT = ("train", "calibration")


def require_apart(parts: Iterable[Listing], folder: Path, option: str) -> None:
    """DataError where images of a class lie below a `folder` of what belongs to none, which would be both then."""
    root = Path(os.path.realpath(folder))
    for listing in parts:
        first = {os.path.dirname(path): i for i, path in reversed(list(enumerate(listing.paths)))}
        for where, i in first.items():
            if Path(os.path.realpath(where)).is_relative_to(root):
                raise DataError(
                    f"{option} {folder} holds images of the class {listing.classes[listing.labels[i]]!r}, as "
                    f"{listing.paths[i]}: move what belongs to no class out of the folder of the classes"
                )


def notes(data: Path, parts: Mapping[str, Part]) -> list[str]:
    """Sentences for a person about images of equal content where that teaches or measures what is not true."""
    sets = {name: set(part.keys.tolist()) for name, part in parts.items()}
    learnt = set[int]().union(*(sets.get(name, ()) for name in LEARNT))
    said = []
    if n := len(learnt & sets.get("test", set())):
        said.append(f"{data}: {n} test images are among those that are learned from, so figures are better than the "
                    "truth: leave them in one part")  # fmt: skip
    if n := len(sets.get("train", set()) & sets.get("calibration", set())):
        said.append(f"{data}: {n} validation images are training images too: thresholds set on what was learned are "
                    "too tight, and more is refused in service than they promise; leave them in one part")  # fmt: skip
    refused = set[int]().union(*(sets.get(name, ()) for name in OUTLIERS))
    if n := len(refused & (learnt | sets.get("test", set()))):
        said.append(f"{data}: {n} outliers are images of a class too, which the model is taught to know and to refuse: "
                    "remove them from the outliers")  # fmt: skip
    return said + _two_labels(data, parts)


def ood_notes(name: str, keys: Keys, parts: Mapping[str, Part]) -> list[str]:
    """The same of the images of an OOD set, by their `keys`."""
    own, said = set(keys.tolist()), []
    known = {one: own & set(parts[one].keys.tolist()) for one in parts}
    taught = set[int]().union(*(found for one, found in known.items() if one in OUTLIERS))
    if taught:
        said.append(f"OOD set {name}: {len(taught)} of {len(keys)} images are outliers of the run, so figures on them "
                    "are better than the truth: leave them in one")  # fmt: skip
    if n := len(set[int]().union(*known.values()) - taught):
        said.append(f"OOD set {name}: {n} of {len(keys)} images are of a class of the run, and should be accepted: "
                    "remove them")  # fmt: skip
    return said


def _two_labels(data: Path, parts: Mapping[str, Part]) -> list[str]:
    labels: dict[int, str] = {}
    two: dict[int, str] = {}
    for part in parts.values():
        for key, label, path in zip(part.keys.tolist(), part.classes, part.paths, strict=False):
            if labels.setdefault(key, label) != label:
                two[key] = f"{path} as {labels[key]!r} and {label!r}"
    if not two:
        return []
    return [f"{data}: {len(two)} images have two labels, which teaches nothing: {some([*two.values()])}; decide on one"]
