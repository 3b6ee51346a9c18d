"""What goes into the ledger and comes out of it: a classified image, feedback about it, and what is counted."""

from collections import Counter
from concurrent.futures import Future
from typing import Literal, NamedTuple

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Decision, Scope, Verdict
from service.errors import TailGuardError

Outcome = Literal["correct", "wrong", "outlier"]


class ModelKey(NamedTuple):
    """The identity of a bundle in the ledger."""

    name: str
    version: str
    sha256: str


class Entry(NamedTuple):
    """One classified image, as it was answered. `time`: seconds since the epoch."""

    time: float
    request_id: str  # the service's own
    position: int  # in the request
    manifest: Manifest
    scores: dict[str, float]
    verdict: Verdict
    key: str | None  # the name of the API key
    image: bytes | None
    client_id: str | None = None  # the id that the client gave to the request; it may repeat
    by_deployment: bool = True  # decided as the deployment decides, and not at a point that the request named


class Feedback(NamedTuple):
    """A true label on its way to the ledger; `answer` gets the record, or why there can be none."""

    time: float
    request_id: str  # the service's, or the client's
    position: int
    truth: str
    key: str | None  # of whoever gives it
    may_review: bool  # and so may label what other keys sent
    answer: Future["FeedbackRecord"]


class FeedbackRecord(NamedTuple):
    """A true label beside what was decided about its image. `outcome`: the predicted label against the true one."""

    model: ModelKey
    label: str
    group: str
    decision: Decision
    truth: str
    outcome: Outcome
    by_deployment: bool
    operating_point: str
    scope: Scope


class TallyKey(NamedTuple):
    """What images are counted by. `by_deployment` as in Entry."""

    operating_point: str
    scope: Scope
    by_deployment: bool
    label: str  # predicted
    decision: Decision
    truth: str  # '' for the image itself; a label, or "outlier", for feedback about it


class Tally(NamedTuple):
    """Images counted for one model since `since`, in seconds since the epoch."""

    since: float
    images: Counter[TallyKey]


class Written(NamedTuple):
    """What a transaction has done, for whoever is to be told once it is committed."""

    entries: int
    answers: list[tuple[Feedback, FeedbackRecord | TailGuardError]]
    feedback: list[tuple[FeedbackRecord, int]]  # what counts from now on (1), and what no longer does (-1)
    tallies: dict[int, Counter[TallyKey]]


def key_of(manifest: Manifest) -> ModelKey:
    """The identity of a bundle in the ledger."""
    return ModelKey(manifest.name, manifest.version, manifest.sha256)


def outcome(label: str, truth: str) -> Outcome:
    """How a predicted label turned out."""
    if truth == OUTLIER_LABEL:
        return "outlier"
    return "correct" if truth == label else "wrong"
