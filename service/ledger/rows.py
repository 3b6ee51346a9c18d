"""What goes into the ledger and comes out of it: a classified image, feedback about it, and what is counted."""

from collections import Counter
from concurrent.futures import Future
from typing import Literal, NamedTuple

from service.contract.bundle import Group, Manifest
from service.contract.decision import Decision, Scope, Verdict
from service.errors import TailGuardError

OUTLIER = "outlier"  # the true label of what belongs to no class

Outcome = Literal["correct", "wrong", "outlier"]


class ModelKey(NamedTuple):
    name: str
    version: str
    sha256: str


class Entry(NamedTuple):
    """One classified image, as it was answered. `time`: seconds since the epoch."""

    time: float
    request_id: str
    position: int
    manifest: Manifest
    scores: dict[str, float]
    verdict: Verdict
    key: str | None  # the name of the API key
    image: bytes | None


class FeedbackRecord(NamedTuple):
    """What feedback says about one decision. `outcome` is of the predicted label against the true one."""

    model: ModelKey
    label: str
    group: Group
    decision: Decision
    truth: str
    outcome: Outcome


class Feedback(NamedTuple):
    """A true label on its way to the ledger; `answer` gets what it meant, or why it cannot be taken."""

    time: float
    request_id: str
    position: int
    truth: str
    key: str | None
    answer: Future[FeedbackRecord]


class TallyKey(NamedTuple):
    operating_point: str
    scope: Scope
    label: str  # predicted
    decision: Decision
    truth: str  # '' for the image itself; a label, or "outlier", for feedback about it


class Tally(NamedTuple):
    """Images counted for one model since `since`, in seconds since the epoch."""

    since: float
    images: Counter[TallyKey]


class Written(NamedTuple):
    """What a transaction has done, to be said once it is committed."""

    entries: int
    answers: list[tuple[Feedback, FeedbackRecord | TailGuardError]]
    feedback: list[tuple[FeedbackRecord, int]]  # what counts from now on (1), and what no longer does (-1)
    tallies: dict[int, Counter[TallyKey]]


def key_of(manifest: Manifest) -> ModelKey:
    """The identity of a bundle in the ledger."""
    return ModelKey(manifest.name, manifest.version, manifest.sha256)


def outcome(label: str, truth: str) -> Outcome:
    """How a predicted label turned out."""
    if truth == OUTLIER:
        return "outlier"
    return "correct" if truth == label else "wrong"
