"""A simulated reviewer at the real API: looks at what the queue offers, and says what it is, now and then wrongly."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tests.loop.stream import Photo, World

Strategy = Literal["groups", "random", "least confident"]
STRATEGIES: tuple[Strategy, ...] = ("groups", "random", "least confident")


@dataclass(frozen=True)
class Shown:
    """What the queue shows of an image."""

    row: int
    key: str  # of its file
    p_value: float


@dataclass(frozen=True)
class ShownGroup:
    id: str
    images: list[Shown]


class Queue(Protocol):
    """The API of the review, as far as the reviewer needs it."""

    def groups(self) -> list[ShownGroup]: ...

    def label(self, rows: Sequence[int], kind: str, label: str, group: str | None) -> None: ...


@dataclass
class Reviewer:
    """Labels `actions` groups, or single images, a day. `wrong`: the share of actions with a wrong label."""

    world: World
    classes: list[str]  # of the first model
    strategy: Strategy
    actions: int
    wrong: float
    rng: np.random.Generator
    spent: int = 0  # actions
    labelled: int = 0  # images
    purity: list[tuple[int, int]] = field(default_factory=list)  # of each labelled group: images, those of its truth

    def __post_init__(self) -> None:
        photos = [photo for day in self.world.days for photo in day]
        self._of_key = {hashlib.sha256(p.path.read_bytes()).hexdigest(): p for p in photos}

    def day(self, queue: Queue) -> None:
        """One sitting."""
        found = queue.groups()
        if self.strategy == "groups":
            chosen = found[: self.actions]
        else:
            alone = [ShownGroup(group.id, [image]) for group in found for image in group.images]
            if self.strategy == "random":
                order = self.rng.permutation(len(alone))
            else:
                order = np.argsort([group.images[0].p_value for group in alone], kind="stable")
            chosen = [alone[i] for i in order[: self.actions]]
        for group in chosen:
            self._label(queue, group)

    def _label(self, queue: Queue, group: ShownGroup) -> None:
        photos = [self._of_key[image.key] for image in group.images]
        said, count = Counter(_said(photo) for photo in photos).most_common(1)[0]
        self.spent += 1
        self.purity.append((len(photos), count))
        if count <= len(photos) / 2 and len(photos) > 1:
            queue.label([image.row for image in group.images], "unsure", "", group.id)
            return  # nothing stands out in it
        if self.rng.random() < self.wrong:
            said = ("class", str(self.rng.choice(self.classes)))
        self.labelled += len(photos)
        queue.label([image.row for image in group.images], *said, group.id)


def _said(photo: Photo) -> tuple[str, str]:
    """(kind, label) of what an image shows. A new class is told by its name, whether the model has it by now or not."""
    return ("outlier", "") if photo.kind == "unknown" else ("class", photo.truth)


def purity(groups: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Of the groups of several images: how many, the mean share of their truth, and that of their images."""
    several = [(images, same) for images, same in groups if images > 1]
    if not several:
        return {"groups": 0, "mean": None, "of images": None}
    images, same = map(sum, zip(*several, strict=True))
    return {"groups": len(several), "mean": float(np.mean([s / n for n, s in several])), "of images": same / images}
