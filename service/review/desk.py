"""The review, as those who look at images see it: groups, the audit sample, what was said and what is left.

One thread uses a desk, with a connection of its own to the ledger's database. It reads there when somebody asks, at
most once in REFRESH_S; where nobody reviews it costs nothing.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from service.contract.exemplars import Exemplars
from service.contract.reasons import Reason
from service.ledger import database as databases
from service.ledger import schema
from service.ledger.rows import ModelKey, Truth
from service.review import grouping, tables
from service.review.grouping import Floats
from service.review.pile import Pile
from service.review.sorter import Sorter, stack
from service.review.tables import Claim, Item, Label

REFRESH_S = 1.0
SINGLE = "row-"  # begins the id of a group that is one image


class Known(NamedTuple):
    """The model in force, which groups are compared with."""

    model: ModelKey
    classes: list[str]
    exemplars: Exemplars | None


@dataclass
class Group:
    """Waiting images that look alike, the most typical first."""

    id: str
    items: list[Item]
    distance: list[float]  # of each to the middle
    spread: float  # their mean
    nearest: str  # known class: of the nearest exemplar to the middle, or else the commonest predicted label
    nearest_distance: float | None  # to that exemplar; None without exemplars
    labels: list[Label] = field(default_factory=list)  # of images of this group that have one

    @property
    def reasons(self) -> Counter[Reason]:
        """Why they were rejected, as far as it was told."""
        return Counter(item.reason for item in self.items if item.reason is not None)

    @property
    def node(self) -> str | None:
        """The node of a taxonomy that more than half of the images were told; None where there is none such."""
        common = Counter(item.node for item in self.items if item.node).most_common(1)
        return common[0][0] if common and 2 * common[0][1] > len(self.items) else None

    @property
    def may_be_new(self) -> bool:
        """Whether they are a candidate for a new class: most of them unknown, and not unsure or unfit. Where no reason
        was told nothing speaks against it."""
        told = self.reasons
        return 2 * told["unknown"] >= told.total()

    @property
    def said(self) -> tuple[Truth, int] | None:
        """What most labelled images of the group are said to be, and how many; None while none is labelled."""
        common = Counter(Truth(label.kind, label.label) for label in self.labels).most_common(1)
        return common[0] if common else None


class Counts(NamedTuple):
    """Images by queue and by what was said."""

    waiting: int
    audit_waiting: int
    audit_labelled: int
    labelled: dict[str, int]  # by kind
    new_classes: dict[str, int]  # by name, the commonest first
    waiting_by_reason: dict[str, int]  # of a rejection, where it was told


class Desk:
    """`look` first; every question is answered from memory then."""

    def __init__(self, where: str) -> None:
        """`where`: the ledger's path or URL, as in the settings."""
        self._where = where
        self._database: databases.Database | None = None
        self._looked_at = -np.inf
        self.pile = Pile()
        self.sorter = Sorter()

    @property
    def database(self) -> databases.Database:
        """The connection, opened where there is none."""
        if self._database is None:
            opened = databases.connect(self._where)
            try:
                schema.prepare(opened)  # the ledger's thread may not have come to it yet
            except BaseException:
                opened.close()
                raise
            self._database = opened
        return self._database

    def close(self) -> None:
        """End the connection; the next question opens another. After an error nobody knows the state of the old one,
        nor whether the rows are still those that have these numbers."""
        self.pile = Pile()
        old, self._database = self._database, None
        if old is not None:
            old.close()

    def look(self, *, now: bool = False) -> None:
        """Read what has changed and group what is new. `now`: even if somebody has just looked."""
        if now or time.monotonic() - self._looked_at > REFRESH_S:
            changed = self.pile.refresh(self.database)
            self.sorter.sort(self.database, self.pile, changed=changed)
            self._looked_at = time.monotonic()

    def groups(self, known: Known, reason: Reason | None = None) -> list[Group]:
        """All that waits, or what was rejected for that reason: what may be a new class before what is unsure or unfit,
        the largest and most alike first; then images that are alone, the newest first."""
        pile = self.pile
        labelled = self._labelled()
        found = [
            self._group(name, items, labelled.get(name, []), known)
            for name, items in pile.members(item.row for item in pile.waiting(reason)).items()
        ]
        found.sort(key=lambda g: (not g.may_be_new, -grouping.alike_first(len(g.items), g.spread), g.id))
        alone = [i for i in pile.waiting(reason) if i.embedding is None or i.row not in pile.group_of]
        singles = [_single(item, known) for item in sorted(alone, key=lambda item: -item.row)]
        return found + sorted(singles, key=lambda group: not group.may_be_new)

    def group(self, name: str, known: Known, reason: Reason | None = None) -> Group | None:
        """One group, or what of it was rejected for that reason; None where nothing of it waits."""
        if name.startswith(SINGLE):
            number = name.removeprefix(SINGLE)
            item = self.pile.items.get(int(number)) if number.isdecimal() and len(number) < 19 else None
            return None if item is None or self.pile.truth(item.row) else _single(item, known)
        items = self.pile.members(i.row for i in self.pile.waiting(reason) if self.pile.group_of.get(i.row) == name)
        return self._group(name, items[name], self._labelled().get(name, []), known) if items else None

    def audit(self) -> list[Item]:
        """The images of the audit sample that wait, in an order that has nothing to do with them."""
        waiting = (item for item in self.pile.audit() if self.pile.truth(item.row) is None)
        return sorted(waiting, key=lambda item: hashlib.sha256(f"{item.row}".encode()).digest())

    def claims(self) -> dict[str, Claim]:
        """Who looks at what."""
        return tables.claims(self.database, time.time())

    def counts(self) -> Counts:
        """How far the review is."""
        pile = self.pile
        truths = [truth for row in pile.labels if (truth := pile.truth(row)) is not None]
        sampled = [pile.truth(item.row) is not None for item in pile.audit()]
        return Counts(
            waiting=sum(1 for _ in pile.waiting()),
            audit_waiting=len(sampled) - sum(sampled),
            audit_labelled=sum(sampled),
            labelled=dict(Counter(truth.kind for truth in truths)),
            new_classes=dict(Counter(truth.label for truth in truths if truth.kind == "new").most_common()),
            waiting_by_reason=dict(Counter(item.reason for item in pile.waiting() if item.reason is not None)),
        )

    def _labelled(self) -> dict[str, list[Label]]:
        found: dict[str, list[Label]] = {}
        for row, group in self.pile.group_of.items():
            if (truth := self.pile.truth(row)) is not None:
                found.setdefault(group, []).append(truth)
        return found

    def _group(self, name: str, items: Sequence[Item], labels: list[Label], known: Known) -> Group:
        centres = self.sorter.middles(self.pile, items[0].model)
        embedding = stack(items)
        at = centres.place.get(name)  # None: it has come since the middles were made
        middle = grouping.middle(embedding) if at is None else centres.middle[at]
        distance = np.maximum(0, 1 - embedding @ middle)
        order = np.argsort(distance, kind="stable").tolist()
        nearest, apart = _nearest(items, middle, known)
        return Group(
            name, [items[i] for i in order], distance[order].tolist(), float(distance.mean()), nearest, apart, labels
        )


def _single(item: Item, known: Known) -> Group:
    embedding = None if item.embedding is None else item.embedding.astype(np.float32)
    nearest, apart = _nearest([item], embedding, known)
    return Group(f"{SINGLE}{item.row}", [item], [0.0], 0.0, nearest, apart)


def _nearest(items: Iterable[Item], middle: Floats | None, known: Known) -> tuple[str, float | None]:
    """The nearest known class and its distance; of images of another model the commonest predicted label."""
    items = list(items)
    if known.exemplars is not None and middle is not None and items[0].model == known.model:
        index, distance = known.exemplars.nearest(middle[None])
        return known.classes[int(known.exemplars.class_index[index[0, 0]])], float(distance[0, 0])
    return Counter(item.predicted for item in items).most_common(1)[0][0], None
