"""What goes into the ledger and comes out of it: a classified image, feedback about it, and what is counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Decision, Scope, Verdict
from service.contract.reasons import Reason

Outcome = Literal["correct", "wrong", "outlier"]
Kind = Literal["class", "new", "outlier", "unsure", "withdrawn"]
"""Of a label: a class of the deciding model; a class that it lacks, by name; nothing known; not sure; taken back."""
Source = Literal["feedback", "review", "import"]


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
    image: bytes | None  # the file, if it is to be kept
    client_id: str | None = None  # the id that the client gave to the request; it may repeat
    by_deployment: bool = True  # decided as the deployment decides, and not at a point that the request named
    embedding: bytes | None = None  # float16, little-endian, unit-norm; of a kept row whose bundle gives one
    sample_rate: float | None = None  # of the audit sample, for a row that is in it
    keep_probability: float | None = None  # with which a row like this one is kept; None: it is not
    node: str | None = None  # the path of the node that a refused image was told; '': nothing can be promised


class Truth(NamedTuple):
    """What somebody says an image shows. `label` is the class, known or new; '' for 'unsure' and 'withdrawn'."""

    kind: Kind
    label: str

    @property
    def counted(self) -> str | None:
        """What tallies and metrics count it as: a class of the deciding model, "outlier", or nothing."""
        if self.kind == "class":
            return self.label
        return OUTLIER_LABEL if self.kind in ("new", "outlier") else None


class Feedback(NamedTuple):
    """A true label on its way to the ledger; `answer` gets the record, or why there can be none."""

    time: float
    request_id: str  # the service's, or the client's
    position: int | None  # in the request; None: not said, as of its only image
    truth: str
    key: str | None  # of whoever gives it
    may_review: bool  # and so may label what other keys sent
    answer: Future["FeedbackRecord"]


class Labels(NamedTuple):
    """One true label for several rows on its way to the ledger; `answer` gets the records of the rows still held."""

    time: float
    decision_rows: Sequence[int]
    truth: Truth
    source: Source
    group_id: str | None
    key: str | None  # of whoever gives it
    answer: Future[list["FeedbackRecord"]]
    again: bool = True  # for rows that have a label too; else they keep it and have no record
    seen: Mapping[int, int] | None = None  # of each row its last label by number: a row with a later one keeps that


class Forget(NamedTuple):
    """A wish that nothing of a request's images is kept, on its way; `answer` gets the number of its images."""

    request_id: str  # the service's, or the client's
    key: str | None  # of whoever asks
    may_review: bool  # and so may have forgotten what other keys sent
    answer: Future[int]


class StoreNews(NamedTuple):
    """What the image store has done: files by key, of the stored ones the bytes with their thumbnail."""

    stored: list[tuple[str, int]] = []  # noqa: RUF012
    failed: list[str] = []  # noqa: RUF012
    deleted: list[str] = []  # noqa: RUF012


class FeedbackRecord(NamedTuple):
    """A true label beside what was decided about its image. `outcome`: the predicted label against the true one."""

    row: int  # of the decision
    model: ModelKey
    label: str
    group: str
    decision: Decision
    kind: Kind
    truth: str  # a class of the deciding model or "outlier", as it is counted; '' where it says neither
    outcome: Outcome | None  # None without such a truth
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


class RefusalKey(NamedTuple):
    """What refused images are counted by, where the bundle says why."""

    operating_point: str
    scope: Scope
    by_deployment: bool
    group: str  # of the predicted class
    reason: Reason


class Tally(NamedTuple):
    """Images counted for one model since `since`, in seconds since the epoch."""

    since: float
    images: Counter[TallyKey]
    refusals: Counter[RefusalKey]


Asking = Feedback | Labels | Forget
Item = Entry | Asking | StoreNews


class Written(NamedTuple):
    """What a transaction has done, for whoever is to be told once it is committed."""

    entries: int
    answers: list[tuple[Asking, Any]]  # what each that asks is told: a result, or a TailGuardError
    feedback: list[tuple[FeedbackRecord, int]]  # what counts from now on (1), and what no longer does (-1)
    tallies: dict[int, Counter[TallyKey]]
    refusals: dict[int, Counter[RefusalKey]]
    arriving: list[tuple[str, bytes, bool]]  # files to be stored, by key; whether the store should have it already
    unkept: list[int]  # bytes of the files that are not kept after all
    leaving: list[str]  # keys of files to be deleted


def key_of(manifest: Manifest) -> ModelKey:
    """The identity of a bundle in the ledger."""
    return ModelKey(manifest.name, manifest.version, manifest.sha256)


def outcome(label: str, truth: str) -> Outcome:
    """How a predicted label turned out."""
    if truth == OUTLIER_LABEL:
        return "outlier"
    return "correct" if truth == label else "wrong"


def packed(embedding: NDArray[np.float32] | None) -> bytes | None:
    """An embedding [D] as the ledger keeps it; None for one that is not finite, near which lies nothing."""
    return None if embedding is None or not np.isfinite(embedding).all() else embedding.astype("<f2").tobytes()


def unpacked(kept: bytes | None) -> NDArray[np.float16] | None:
    """The embedding [D] that was packed; None for one that is not finite, which earlier versions kept."""
    found = None if kept is None else np.frombuffer(kept, "<f2")
    return None if found is None or not np.isfinite(found).all() else found
