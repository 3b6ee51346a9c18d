"""Image files with their labels: what a data set on disk is before a pixel is read."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import require_class_names, spelling
from training.data.readers import DataError, Labels

SHOWN = 5  # of what a note names


@dataclass(frozen=True)
class Listing:
    """N image files, int64 labels [N] in 0..C-1 (empty `classes`: unlabelled, all 0), and the C class names.

    A class name may be a path, Fruit/Apple: the class in its taxonomy. `columns` are other columns of a list, [N] each.
    """

    paths: list[str]
    labels: Labels
    classes: tuple[str, ...]
    columns: dict[str, list[str]]

    @staticmethod
    def unlabelled(paths: list[str]) -> "Listing":
        return Listing(paths, np.zeros(len(paths), np.int64), (), {})

    def take(self, index: NDArray[Any]) -> "Listing":
        rows = np.asarray(index, np.int64).tolist()
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return Listing([self.paths[i] for i in rows], self.labels[rows], self.classes, columns)

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    @cached_property
    def taxonomy(self) -> list[tuple[str, ...]]:
        """For each class the names on its way from the root: ("Fruit", "Apple")."""
        return [tuple(name.split("/")) for name in self.classes]


@dataclass(frozen=True)
class Parts:
    """The parts of a data set that were found: train, and perhaps val and test, all with the same classes.

    Without a test part the caller makes one. `notes` are sentences for a person about what was left out.
    """

    parts: dict[str, Listing]
    notes: list[str]

    def check(self, data: Path) -> None:
        """DataError where a class has no image to train on, or a name that means something else."""
        train = self.parts["train"]
        try:
            require_class_names(train.classes)
        except ValueError as error:
            raise DataError(f"{data}: {error}") from error
        if empty := [name for name, n in zip(train.classes, train.counts, strict=True) if not n]:
            raise DataError(
                f"{data}: no training image of class {', '.join(empty[:5])}: add some, or remove the class everywhere"
            )


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first of many, for a note."""
    return f"{between.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"


def alike_notes(data: Path, classes: Sequence[str]) -> list[str]:
    """Classes that may be one, written in two ways: nothing else tells that each takes the other's images for wrong."""
    written: dict[str, list[str]] = {}
    for name in classes:
        written.setdefault(spelling(name), []).append(name)
    pairs = [" and ".join(map(repr, sorted(names))) for names in written.values() if len(names) > 1]
    if not pairs:
        return []
    return [f"{data}: classes of one name in two spellings stay two classes: {some(pairs, '; ')}; write them alike if "
            "they are one"]  # fmt: skip


Labelled = dict[str, list[tuple[str, str]]]  # part → (path, class name) of each image


def by_frequency(
    labelled: Labelled, columns: dict[str, dict[str, list[str]]] | None = None, *, more: Iterable[str] = ()
) -> dict[str, Listing]:
    """Listings of the parts; classes from the most frequent in train to the rarest, equals in the order of names.

    `more` are classes without an image in train.
    """
    counts = Counter(name for _, name in labelled["train"])
    counts.update(dict.fromkeys([*more, *(name for rows in labelled.values() for _, name in rows)], 0))
    classes = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    place = {name: i for i, name in enumerate(classes)}
    return {
        part: Listing(
            [path for path, _ in rows], np.array([place[name] for _, name in rows], np.int64), classes,
            (columns or {}).get(part, {}),
        )
        for part, rows in labelled.items()
    }  # fmt: skip
