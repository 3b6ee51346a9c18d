"""The review for code that runs on an event loop: questions to a desk in its thread, labels, undo.

front = Front(ledger)
groups = await front.ask(lambda desk: desk.groups(known))
done = await front.label(rows, Truth("new", "jellyfish"), group="g1", reviewer=Reviewer("ann", "tab-1"))
await front.undo(done.action, reviewer)
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import structlog

from service.contract.lines import one_line
from service.errors import InvalidParameter, NotFound, NotReady, Refused
from service.ledger.rows import Source, Truth
from service.ledger.schema import of_database
from service.ledger.writer import Ledger
from service.review import tables
from service.review.desk import SINGLE, Desk
from service.review.imports import Plan
from service.review.tables import Claim, Label

CLAIM_S = 180.0  # a page renews its claims every minute
ATTEMPTS, RETRY_S = 3, 0.1
UNDO = "undo"  # in place of the group, marks a label that an undo has written
UNAVAILABLE = "the ledger's database does not answer now, the service's log says why: try again"
T = TypeVar("T")

log = structlog.get_logger()


class Reviewer(NamedTuple):
    """Who labels: the name of an API key, and which of several pages that use it."""

    key: str | None
    desk: str

    @property
    def claims_as(self) -> str:
        return f"{self.key or ''}#{self.desk}"


class Labelled(NamedTuple):
    """What came of labels. `action` is for undo; None when nothing has changed."""

    action: int | None
    rows: list[int]
    gone: list[int]  # no longer in the ledger
    already: list[Label]  # images that had a label by then, and keep it


class Front:
    """One for each process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._desk = Desk(ledger.where)
        self._thread = ThreadPoolExecutor(1, "review")
        self._labelling = asyncio.Lock()

    async def ask(self, question: Callable[[Desk], T], *, now: bool = False) -> T:
        """What the desk answers, after a look; `now`: even if it has just looked. Raises NotReady."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, question, now)

    async def claim(self, items: Sequence[str], reviewer: Reviewer) -> dict[str, Claim]:
        """Take items that nobody else looks at; whose each of them is then."""
        return await self.ask(lambda desk: tables.claim(desk.database, items, reviewer.claims_as, time.time(), CLAIM_S))

    async def release(self, items: Sequence[str], reviewer: Reviewer) -> None:
        """Free items for others."""
        await self.ask(lambda desk: tables.release(desk.database, items, reviewer.claims_as))

    async def label(
        self, rows: Sequence[int], truth: Truth, *, group: str | None, reviewer: Reviewer, again: bool = False
    ) -> Labelled:
        """Label the images that somebody saw, and return once it is committed.

        Images that have a label by now keep it, unless `again`. Raises Refused where another reviewer has claimed the
        group or one of the images, and what Ledger.label raises.
        """
        if group == UNDO:  # an undo would pass this label by, and take back another
            raise InvalidParameter(f"group={UNDO} is no group: name the one in which the images were seen")
        rows = list(dict.fromkeys(rows))
        async with self._labelling:
            open_rows, done, before = await self.ask(lambda desk: _open(desk, rows, group, reviewer, again))
            if not open_rows:
                return done
            kind, label = truth
            records = await self._ledger.label(
                open_rows, kind=kind, label=label, source="review", group_id=group, key=reviewer.key, again=again
            )
            written = [record.row for record in records]
            if left := [row for row in open_rows if row not in set(written)]:  # deleted, or labelled by another replica
                late = await self.ask(lambda desk: tables.history(desk.database, left))
                done.already.extend(labels[-1] for labels in late.values())
                done.gone.extend(row for row in left if row not in late)
            action = await self.ask(lambda desk: _action(desk, written, reviewer, before), now=True)
            return done._replace(action=action, rows=written)

    async def undo(self, action: int | None, reviewer: Reviewer) -> tuple[list[int], list[int]]:
        """Take back an action of this reviewer, None: the last one: (images undone, images that others have changed).

        An image gets back the label that it had before, or none. Raises NotFound where there is nothing to undo.
        """
        async with self._labelling:
            mine = await self.ask(lambda desk: _actions(desk, action, reviewer))
            if not mine:
                raise NotFound("there is no label of yours that could be undone" + (f": {action}" if action else ""))
            before, changed = await self.ask(lambda desk: _before(desk, mine))
            undone: list[int] = []
            for (truth, source, key), seen in before.items():
                kind, label = truth
                records = await self._ledger.label(
                    list(seen), kind=kind, label=label, source=source, group_id=UNDO, key=key, seen=seen
                )
                written = {record.row for record in records}
                undone += written
                changed += seen.keys() - written  # by another replica, since the look at them
            await self.ask(lambda desk: None, now=True)
            return sorted(undone), sorted(changed)

    async def take_over(self, plan: Plan, reviewer: Reviewer) -> int:
        """Give the labels of an import, some hundred in one transaction; the number of images labelled."""
        count = 0
        async with self._labelling:
            for (kind, label), rows in plan.labels.items():
                for start in range(0, len(rows), tables.CHUNK_ROWS):
                    records = await self._ledger.label(
                        rows[start : start + tables.CHUNK_ROWS], kind=kind, label=label, source="import",
                        key=reviewer.key, again=False,
                    )  # fmt: skip
                    count += len(records)
            await self.ask(lambda desk: None, now=True)
        return count

    def close(self) -> None:
        """End the connection and the thread."""
        self._thread.submit(self._desk.close)
        self._thread.shutdown()

    def _answer(self, question: Callable[[Desk], T], now: bool) -> T:
        """In the desk's thread. After an error the connection is opened anew; a ledger in memory may just be locked."""
        for attempt in range(ATTEMPTS):
            try:
                self._desk.look(now=now)
                return question(self._desk)
            except Exception as error:
                if not of_database(error):
                    raise
                with contextlib.suppress(Exception):
                    self._desk.close()
                if attempt + 1 == ATTEMPTS:
                    log.error("the review cannot read the ledger", error=one_line(error))
                    raise NotReady(UNAVAILABLE) from error
                time.sleep(RETRY_S)
        raise AssertionError


def _open(
    desk: Desk, rows: list[int], group: str | None, reviewer: Reviewer, again: bool
) -> tuple[list[int], Labelled, dict[int, int]]:
    """The rows that may be labelled, what is to be said of the others, and the number of each row's last label."""
    claims = tables.claims(desk.database, time.time())
    for item in [group or "", *(f"{SINGLE}{row}" for row in rows)]:
        if item in claims and claims[item].reviewer != reviewer.claims_as:
            who = claims[item].reviewer.partition("#")[0] or "somebody else"
            raise Refused(f"{who} is looking at {item}: take another, or come back in {CLAIM_S:g} s")
    held = {item.row for item in tables.items(desk.database, rows)}
    last = {row: labels[-1] for row, labels in tables.history(desk.database, held).items()}
    already = [] if again else [label for label in last.values() if label.kind != "withdrawn"]
    closed = {label.decision_row for label in already}
    gone = [row for row in rows if row not in held]
    numbers = {row: label.row for row, label in last.items()}
    return [row for row in rows if row in held and row not in closed], Labelled(None, [], gone, already), numbers


def _action(desk: Desk, rows: list[int], reviewer: Reviewer, before: dict[int, int]) -> int | None:
    """The number of the last label that this reviewer has just given to one of the rows; None where each had it: its
    number is that of an earlier action, and an undo would take that back."""
    last = (labels[-1] for labels in tables.history(desk.database, rows).values())
    given = (label for label in last if label.key == reviewer.key and label.group_id != UNDO)
    return max((label.row for label in given if label.row != before.get(label.decision_row)), default=None)


def _actions(desk: Desk, action: int | None, reviewer: Reviewer) -> list[Label]:
    """The labels of one action of this reviewer, which were given at the same time."""
    for given in tables.given_by(desk.database, reviewer.key, action):
        if given.group_id == UNDO:
            continue
        labels = tables.given_at(desk.database, reviewer.key, given.time, given.row)
        before, _ = _before(desk, labels)
        if action is not None or before:
            return labels
    return []


def _before(desk: Desk, mine: list[Label]) -> tuple[dict[tuple[Truth, Source, str | None], dict[int, int]], list[int]]:
    """What each image of an action was said to be before it, with the number of its last label; and the images that
    have another label by now."""
    found: dict[tuple[Truth, Source, str | None], dict[int, int]] = {}
    changed = []
    history = tables.history(desk.database, [label.decision_row for label in mine])
    for label in mine:
        given = history.get(label.decision_row, [])
        standing = _standing(given)
        if not standing or standing[-1].row != label.row:
            changed.append(label.decision_row)
            continue
        if len(standing) > 1:
            last = standing[-2]
            key = (Truth(last.kind, last.label), last.source, last.key)
        else:
            key = (Truth("withdrawn", ""), "review", label.key)
        found.setdefault(key, {})[label.decision_row] = given[-1].row
    return found, changed


def _standing(labels: Sequence[Label]) -> list[Label]:
    """Those of an image that no undo has taken back; the last one counts. An undo writes an earlier one again."""
    standing: list[Label] = []
    for label in labels:
        if label.group_id != UNDO:
            standing.append(label)
        elif standing:
            standing.pop()
    return standing
