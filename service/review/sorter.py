"""Puts the images of a pile into groups: new ones at once, where they are like a group; all that wait now and then.

Of several replicas that share a ledger one sorts, for as long as it renews its lease; the others read what it wrote.
"""

import time
import uuid
from collections.abc import Sequence

import numpy as np

from service.ledger.database import Database
from service.ledger.rows import ModelKey
from service.review import grouping, regroup, tables
from service.review.grouping import Centres, Floats
from service.review.pile import Pile
from service.review.tables import Item

LEASE_S = 30.0
GROUPING = "grouping"  # the claim that is the lease
SOON_S, LATER_S = 10.0, 120.0  # between two groupings, where many images are new, or few
MANY = 0.05  # of the images that wait
REST = 5  # times as long as the last grouping took


class Sorter:
    """`sort` after every refresh of the pile."""

    def __init__(self) -> None:
        self.missing = regroup.missing()  # what to install, before anything can be grouped
        self._me = f"{GROUPING}-{uuid.uuid4().hex}"
        self._regrouping = regroup.Regrouping()
        self._settled: set[int] = set()  # rows that the last grouping has seen
        self._centres: dict[ModelKey, Centres] = {}

    @property
    def busy(self) -> bool:
        """Whether a new grouping is being made."""
        return self._regrouping.running

    @property
    def failed(self) -> bool:
        """Whether the last one came to nothing; the log says why."""
        return self._regrouping.failed

    def sort(self, database: Database, pile: Pile, *, changed: bool) -> None:
        """Group what is new. `changed`: another replica has changed groups since the last time."""
        if changed:
            self._centres = {}
        if self.missing is not None:
            return
        lease = tables.claim(database, [GROUPING], self._me, time.time(), LEASE_S)[GROUPING]
        if lease.reviewer != self._me:
            return
        # What somebody looks at stays as it is.
        fixed = pile.labelled_groups() | set(tables.claims(database, time.time()))
        self._apply(database, pile, fixed)
        loose = [item for item in pile.waiting() if item.row not in pile.group_of and item.row not in self._settled]
        for model, items in pile.by_model(loose).items():
            joined = grouping.assign(stack(items), self.middles(pile, model))
            changes: dict[int, str | None] = {
                item.row: group for item, group in zip(items, joined, strict=True) if group is not None
            }
            _write(database, pile, changes)  # the middles stay what they were, so that a group does not drift
        self._begin(pile, fixed)

    def middles(self, pile: Pile, model: ModelKey) -> Centres:
        """Of the groups of one model, from all their images, labelled ones too."""
        if model not in self._centres:
            rows = [row for row in pile.group_of if pile.items[row].model == model]
            members = {group: stack(items) for group, items in pile.members(rows).items()}
            self._centres[model] = grouping.centres(members)
        return self._centres[model]

    def _apply(self, database: Database, pile: Pile, fixed: set[str]) -> None:
        """Put a finished grouping in force. What was labelled or claimed meanwhile stays where it is."""
        for rows, cluster in self._regrouping.done() or []:
            here = [
                (row, number)
                for row, number in zip(rows, cluster.tolist(), strict=True)
                if row in pile.items and pile.truth(row) is None and pile.group_of.get(row) not in fixed
            ]
            before = [pile.group_of.get(row) for row, _ in here]
            after = grouping.continued([number for _, number in here], before, fixed)
            changes = {row: new for (row, _), old, new in zip(here, before, after, strict=True) if new != old}
            _write(database, pile, changes)
            self._centres = {}

    def _begin(self, pile: Pile, fixed: set[str]) -> None:
        """A new grouping of all that wait, unless there is little new, or the last one was just now."""
        if self.busy:
            return
        free = [
            item for item in pile.waiting() if item.embedding is not None and pile.group_of.get(item.row) not in fixed
        ]
        new = sum(item.row not in self._settled for item in free)
        wait_s = max(SOON_S if new > MANY * len(free) else LATER_S, REST * self._regrouping.seconds)
        if new and time.monotonic() - self._regrouping.ended > wait_s:
            self._settled = {item.row for item in free}
            self._regrouping.start(
                [([item.row for item in part], stack(part)) for part in pile.by_model(free).values()]
            )


def stack(items: Sequence[Item]) -> Floats:
    """The embeddings of items that have one: float32 [N, D]."""
    return np.stack([item.embedding for item in items if item.embedding is not None]).astype(np.float32)


def _write(database: Database, pile: Pile, changes: dict[int, str | None]) -> None:
    tables.write_groups(database, changes)
    for row, group in changes.items():
        if group is None:
            pile.group_of.pop(row, None)
        else:
            pile.group_of[row] = group
