"""What is known of a shadow beside the model in force: how often they differ, and what reviewed images say.

Four things are asked before it may take over:

    disagreement   of the images that the model in force accepted, those that the shadow refuses or names otherwise.
                   What was refused got no name to disagree with, and a model that learned is meant to answer it. Truth
                   goes before: a shadow that is right more often beyond the interval (see below) may differ
    newly accepted of all images, those that were refused and that the shadow accepts under a class of which nobody
                   has reviewed an image for it
    right          on reviewed images of the audit sample, where none was chosen by what was answered: an image of a
                   class that the model knows is accepted under its name, any other is refused. The shadow is not worse
                   beyond the interval
    caught         of confirmed outliers that were refused, as many as its own manifest claims, or an interval below:
                   these are the ones that the model in force was best at, so it cannot be compared with on them

Images that the shadow was trained on, by its manifest, tell nothing and are left out.
"""

import asyncio
from collections.abc import Container, Iterator
from typing import NamedTuple

import numpy as np

from service.contract.intervals import paired, wilson
from service.contract.keys import content_key, key_text
from service.errors import TailGuardError
from service.inference.model import Model
from service.inference.shadow import Shadow
from service.ledger.reading import DecidedRow, Reader
from service.ledger.rows import key_of
from service.observe.metrics import SHADOW_OUTCOMES

MOST_REVIEWED = 500  # the latest
DIFFERS = ("decision-differs", "label-differs")
ACCEPTED = ("same", *DIFFERS)


class Limits(NamedTuple):
    """What is asked of the evidence; shares in [0, 1]."""

    least_compared: int = 200
    most_disagreement: float = 0.1
    most_newly_accepted: float = 0.1
    least_reviewed: int = 20
    most_worse: float = 0.01


class Answered(NamedTuple):
    """A reviewed image: right by the model in force, right by the shadow; whether it is an outlier, and sampled."""

    before: bool
    after: bool
    outlier: bool
    refused: bool  # by the model in force
    sampled: bool


class Evidence(NamedTuple):
    """The numbers, and why they do not allow it: nothing where they do."""

    compared: int
    accepted: int  # of them, by the model in force
    disagreement: float | None  # of these
    newly_accepted: float | None  # of all compared
    reviewed: int
    sampled: int
    right_before: float | None  # of the sampled
    right_after: float | None
    outliers: int  # confirmed ones that were refused
    caught: float | None
    objections: list[str]


def weigh(shadow: Shadow, answered: list[Answered], limits: Limits) -> Evidence:
    """What is for and against the shadow."""
    against: list[str] = []
    drawn = [one for one in answered if one.sampled]
    one, two = (np.array([answer[i] for answer in drawn], bool) for i in (0, 1))
    before, after = (float(flags.mean()) if drawn else None for flags in (one, two))
    low, high = paired(one, two)
    better = len(drawn) >= limits.least_reviewed and low > 0
    compared, accepted, differs = (
        sum(shadow.seen[outcome] for outcome in outcomes) for outcomes in (SHADOW_OUTCOMES, ACCEPTED, DIFFERS)
    )
    opened = shadow.seen["newly-accepted"]
    if compared < limits.least_compared:
        skipped, failed = shadow.seen["skipped"], shadow.seen["failed"]
        more = f" ({skipped} were skipped while the service was busy, {failed} failed)" if skipped or failed else ""
        against.append(
            f"it has been compared on {compared} images{more}, and {limits.least_compared} are asked for: wait"
        )
    else:
        if not better:
            what = "images that were accepted"
            against += _too_many("it differs on", differs, accepted, what, limits, "most_disagreement")
        against += _too_many("it accepts, under classes that nobody reviewed for it, what was refused:", opened,
                             compared, "images", limits, "most_newly_accepted")  # fmt: skip
    if len(answered) < limits.least_reviewed:
        against.append(f"{len(answered)} reviewed images tell of it that it was not trained on, and "
                       f"{limits.least_reviewed} are asked for: review more")  # fmt: skip
    if drawn and high < -limits.most_worse:
        against.append(f"it is right on {after:.1%} of {len(drawn)} sampled images and the model in force on "
                       f"{before:.1%}: worse by {-100 * high:.1f} points at the least")  # fmt: skip
    outliers = [answer.after for answer in answered if answer.outlier and answer.refused]
    claimed = _claimed(shadow.model)
    if outliers and claimed is not None and (most := wilson(sum(outliers), len(outliers))[1]) < claimed:
        against.append(f"of {len(outliers)} confirmed outliers it refuses {sum(outliers)}, at most {most:.1%}, and its "
                       f"manifest claims {claimed:.1%}")  # fmt: skip
    return Evidence(
        compared, accepted, _share(differs, accepted), _share(opened, compared), len(answered), len(drawn), before,
        after, len(outliers), _share(sum(outliers), len(outliers)), against,
    )  # fmt: skip


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _too_many(what: str, count: int, of: int, images: str, limits: Limits, limit: str) -> list[str]:
    most = getattr(limits, limit)
    if not of or count / of <= most:
        return []
    low, high = wilson(count, of)
    return [f"{what} {count / of:.1%} ({low:.1%} to {high:.1%}) of {of} {images}, and {most:.0%} are allowed: look at "
            f"them, and where it is meant, as after a new class was taught, give a larger {limit}"]  # fmt: skip


def _claimed(model: Model) -> float | None:
    cost = model.manifest.operating_points[model.operating_point].cost(model.scope)
    return (cost.test or cost.calibration).outliers_caught


async def reviewed(shadow: Shadow, in_force: Model, reader: Reader) -> list[Answered]:
    """The latest reviewed images that the model in force decided, each decided by the shadow in its own thread."""
    found = await asyncio.to_thread(_rows, reader, in_force)
    taught = set((shadow.model.manifest.provenance.added or {}).get("trained_keys", ()))
    answered = []
    for row in found:
        data = await asyncio.to_thread(_image, reader, row)
        if data is None or key_text(content_key(data)) in taught:
            continue
        try:
            decided = shadow.verdict(await shadow.row(data))
        except TailGuardError:
            continue  # an image that this model's limits refuse
        assert row.label is not None
        name = shadow.model.manifest.classes[decided.class_index].name
        outlier = row.label.kind == "outlier"
        truth = None if outlier else row.label.label
        before = _right(truth, in_force.class_names, row.predicted, row.decision)
        after = _right(truth, shadow.model.class_names, name, decided.decision)
        answered.append(Answered(before, after, outlier, row.decision == "reject", row.sampled))
    return answered


def _rows(reader: Reader, in_force: Model) -> list[DecidedRow]:
    """The latest rows that somebody has said something about, decided as the model in force decides now: a recalibrated
    bundle has the same graph and other thresholds, and a request may name an operating point of its own."""
    decided_by = (key_of(in_force.manifest), True, in_force.operating_point, in_force.scope)
    found = [
        row
        for row in _labelled(reader)
        if (row.model, row.by_deployment, row.operating_point, row.scope) == decided_by and row.image_key
    ]
    return found[-MOST_REVIEWED:]


def _labelled(reader: Reader) -> Iterator[DecidedRow]:
    for row in reader.labelled():
        if row.label is not None and row.label.kind in ("class", "new", "outlier"):
            yield row


def _image(reader: Reader, row: DecidedRow) -> bytes | None:
    try:
        return reader.image(row.image_key) if row.image_key else None
    except Exception:  # a store that is away: the image tells nothing
        return None


def _right(truth: str | None, classes: Container[str], predicted: str, decision: str) -> bool:
    """Whether an answer is right of a model that knows `classes`; `truth` None: an outlier."""
    if truth is None or truth not in classes:
        return decision == "reject"
    return decision == "accept" and predicted == truth
