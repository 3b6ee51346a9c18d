"""The reviewed rows of one graph in a ledger, and for how many images of the stream each of them stands."""

from collections import Counter
from collections.abc import Container, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from service.contract.bundle import Manifest
from service.errors import SettingsError
from service.ledger.database import POSTGRESQL, check
from service.ledger.reading import DecidedRow, Reader

UNKNOWN = ""


class Stratum(NamedTuple):
    """Rows that were kept alike: within one the reviewed ones stand for all."""

    group: str  # of the predicted class
    decision: str
    keep_probability: float


class _Image(NamedTuple):
    """One that was kept: sent again, by a client that waited too long or a person who tries, it is still one image."""

    stratum: Stratum
    content: str | int  # the key of its file in the store; without a store the number of its row


@dataclass(frozen=True)
class Row:
    """A reviewed image: `truth` is its class, None for an outlier; it stands for `weight` images of the stream."""

    predicted: str
    truth: str | None
    scores: Mapping[str, float | None]
    weight: float
    unfit: bool = False  # refused for its pixels, whatever it scores


@dataclass(frozen=True)
class Rows:
    """What a ledger holds of a graph. `kept` and `reviewed` by stratum; `unkept`: labelled, but nobody knows how
    these were chosen. `labelled`: whatever the label, a class that the bundle lacks too."""

    rows: list[Row]
    kept: Counter[Stratum]
    reviewed: Counter[Stratum]
    unkept: int
    labelled: Counter[Stratum] = field(default_factory=Counter)

    def stands_for(self, stratum: Stratum) -> float:
        """For how many images of the stream a reviewed row of the stratum stands.

        Rows of its group with the same decision that were kept with another probability, of which none was reviewed
        (the rate of the sample has been changed, and their images may be gone), are spoken for by those that were.
        """
        alike = self._alike(stratum)
        spoken = sum(images for s, images in alike.items() if self.reviewed[s])
        return alike[stratum] / self.reviewed[stratum] * sum(alike.values()) / spoken

    def is_spoken_for(self, stratum: Stratum) -> bool:
        """Whether any row of its group with the same decision was reviewed."""
        return any(self.reviewed[s] for s in self._alike(stratum))

    def _alike(self, stratum: Stratum) -> dict[Stratum, float]:
        """The strata of its group with the same decision: for how many images of the stream they stand."""
        return {s: kept / s.keep_probability for s, kept in self.kept.items() if s[:2] == stratum[:2]}

    def known(self, name: str) -> "list[Row]":
        """The in-distribution rows that have the score `name`."""
        return [row for row in self.rows if row.truth is not None and row.scores.get(name) is not None]

    def outliers(self, name: str) -> "list[Row]":
        """The outliers that have the score `name`."""
        return [row for row in self.rows if row.truth is None and row.scores.get(name) is not None]


def read(where: str, manifest: Manifest) -> Rows:
    """The kept rows that the graph of `manifest` decided. SettingsError where there is no ledger, or an older one."""
    check(where, "--ledger")
    if not where.startswith(POSTGRESQL) and not Path(where).is_file():
        raise SettingsError(f"--ledger {where} is no file: name the ledger that the service wrote (TAILGUARD_LEDGER)")
    images: set[_Image] = set()
    labelled: set[_Image] = set()
    seen: dict[_Image, tuple[DecidedRow, str | None]] = {}
    unkept = last = 0
    group_of = {c.name: c.group for c in manifest.classes}
    try:
        reader = Reader(where)
    except Exception as error:  # each driver has its own
        raise SettingsError(f"the ledger cannot be read ({error}): name the one that the service writes") from error
    with closing(reader):
        while rows := reader.kept(last):
            last = rows[-1].row
            for row in rows:
                if row.model.sha256 != manifest.sha256 or row.predicted not in group_of:
                    continue
                assert row.keep_probability is not None
                stratum = Stratum(group_of[row.predicted], row.decision, row.keep_probability)
                image = _Image(stratum, row.image_key or row.row)
                images.add(image)
                if row.label is None:
                    continue
                labelled.add(image)
                truth = _truth(row, group_of)
                if truth != UNKNOWN and (image not in seen or _number(row) > _number(seen[image][0])):
                    seen[image] = row, truth
        for row in reader.labelled():
            unkept += row.model.sha256 == manifest.sha256 and row.keep_probability is None
    kept, reviewed, told = (Counter(image.stratum for image in each) for each in (images, seen, labelled))
    found = Rows([], kept, reviewed, unkept, told)
    weights = {stratum: found.stands_for(stratum) for stratum in reviewed}
    for image, (row, truth) in seen.items():
        found.rows.append(Row(row.predicted, truth, row.scores, weights[image.stratum], row.reason == "unfit"))
    return found


def _number(row: DecidedRow) -> int:
    """Of its label, which grows with every label."""
    return row.label.number if row.label else 0


def _truth(row: DecidedRow, classes: Container[str]) -> str | None:
    """A class of the bundle, None for an outlier, UNKNOWN where nobody has said."""
    if row.label is None or row.label.kind in ("unsure", "withdrawn"):
        return UNKNOWN
    if row.label.kind == "class":
        return row.label.label if row.label.label in classes else UNKNOWN
    return None
