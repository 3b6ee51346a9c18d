"""The images of the review in memory: which wait, which have a label, and in which group each of them is.

Read from the ledger's database, and then only what has changed; labels and groups of other replicas come in that way
too. One thread uses it.
"""

from collections.abc import Iterable, Iterator

from service.contract.reasons import Reason
from service.ledger.database import Database
from service.ledger.rows import ModelKey
from service.review import tables
from service.review.tables import Item, Label

MOST_ROWS = 30_000  # the newest; each takes about a kilobyte of memory with an embedding of 256


class Pile:
    """`refresh` reads; everything else looks at what was read last."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self.items: dict[int, Item] = {}
        self.labels: dict[int, Label] = {}  # the last of each image: the one that counts
        self.group_of: dict[int, str] = {}
        self._most = most_rows
        self._last: Label | None = None  # that was read

    def refresh(self, database: Database) -> bool:
        """Read what is new and forget what is gone; whether the groups have changed since the last time."""
        rows = tables.newest(database, self._most)
        held = set(rows)
        for gone in [row for row in self.items if row not in held]:
            del self.items[gone]
            self.labels.pop(gone, None)
        fresh = [row for row in rows if row not in self.items]
        known = bool(self.items)
        for item in tables.items(database, fresh):
            self.items[item.row] = item
        if self.items:
            if known:  # an image may have its label before it comes here
                for row, labels in tables.history(database, fresh).items():
                    self.labels[row] = labels[-1]
            if self._last is not None and tables.label(database, self._last.row) != self._last:
                self._last, self.labels = (
                    None,
                    {},
                )  # forgotten: SQLite gives its number to another, so all are read again
            after = 0 if self._last is None else self._last.row
            for label in tables.labels_after(database, after, min(self.items)):
                self._last = label
                if label.decision_row in self.items:
                    self.labels[label.decision_row] = label
        groups = {row: group for row, group in tables.groups(database).items() if row in self.items}
        changed = groups != self.group_of
        self.group_of = groups
        return changed

    def truth(self, row: int) -> Label | None:
        """The label of an image; None while it has none, or when it was taken back."""
        label = self.labels.get(row)
        return None if label is None or label.kind == "withdrawn" else label

    def waiting(self, reason: Reason | None = None) -> Iterator[Item]:
        """Rejected images without a label, which are looked at in groups; only those rejected for the `reason`. The
        audit sample is not among them."""
        items = (item for item in self.items.values() if not item.sampled and self.truth(item.row) is None)
        return items if reason is None else (item for item in items if item.reason == reason)

    def audit(self) -> Iterator[Item]:
        """The audit sample, labelled or not."""
        return (item for item in self.items.values() if item.sampled)

    def labelled_groups(self) -> set[str]:
        """Groups of which an image has a label: no new grouping tears them apart."""
        return {group for row, group in self.group_of.items() if self.truth(row) is not None}

    def members(self, rows: Iterable[int]) -> dict[str, list[Item]]:
        """The images of `rows` that are in a group and have an embedding, by group."""
        found: dict[str, list[Item]] = {}
        for row in rows:
            group, item = self.group_of.get(row), self.items[row]
            if group is not None and item.embedding is not None:
                found.setdefault(group, []).append(item)
        return found

    def by_model(self, items: Iterable[Item]) -> dict[ModelKey, list[Item]]:
        """Those with an embedding, by the model that made it: embeddings of two models cannot be compared."""
        found: dict[ModelKey, list[Item]] = {}
        for item in items:
            if item.embedding is not None:
                found.setdefault(item.model, []).append(item)
        return found
