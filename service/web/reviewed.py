"""The bodies of the routes under /review. Distances are 1 - cosine; times are seconds since the epoch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.reasons import Reason
from service.ledger.rows import Kind

SAID = Literal["class", "new", "outlier", "unsure"]
MOST_ROWS = 200  # of one label: as many as one answer shows
LAST = 2**62  # of rows; from 2**63 on SQLite and PostgreSQL have no number
WORD = r"^[^\x00-\x1f\x7f]*$"  # PostgreSQL holds no text with a zero
Row = Annotated[int, Field(strict=True, ge=0, le=LAST)]  # true is no row, and neither is "5"
Item = Annotated[str, Field(max_length=100, pattern=WORD)]
"""What can be claimed: the id of a group, or "row-" and the number of an image."""


class GroupsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason | None = Field(default=None, description="only images that were rejected for it")


class Said(BaseModel):
    """What somebody said that images show."""

    kind: Kind = Field(description="class: one that the model in service has; new: one that it lacks, by name")
    label: str = Field(description="the class, known or new; empty for the other kinds")
    images: int


class ClaimShown(BaseModel):
    by: str | None = Field(description="the name of the API key; null: somebody without one")
    desk: str
    until: float


class GroupSummary(BaseModel):
    """Images that wait and look alike."""

    id: str
    images: int
    nearest: str = Field(
        description="the known class nearest to the middle; without exemplars the commonest prediction"
    )
    distance: float | None = Field(
        description="to it; null where the bundle holds no exemplars, or another model decided"
    )
    spread: float = Field(description="mean distance of the images from their middle: the smaller, the more alike")
    said: Said | None = Field(description="what most labelled images of this group are said to show")
    claim: ClaimShown | None = Field(description="who looks at it now")
    reasons: dict[Reason, int] = Field(description="images by why they were rejected, where the bundle told it")
    node: str | None = Field(
        description="of a taxonomy, as its path: what more than half of the images were told; null where there is none"
    )
    may_be_new: bool = Field(description="a candidate for a new class: not mostly unsure or unfit")
    keys: list[str] = Field(description="image keys of the most typical, for GET /review/thumbnails/{key}")


class GroupsAnswer(BaseModel):
    groups: list[GroupSummary] = Field(description="the largest and most alike first, at most 100")
    more: int = Field(description="groups beyond these")
    grouping: bool = Field(description="a new grouping is being made")
    note: str | None = Field(description="why there is nothing, or why images stand alone")


class ImageShown(BaseModel):
    """A kept image that waits for a label."""

    row: int = Field(description="what POST /review/labels takes")
    key: str = Field(description="for GET /review/images/{key} and /review/thumbnails/{key}")
    predicted: str
    decision: str
    reason: Reason | None
    node: str | None = Field(
        description="of a taxonomy, as its path (fruit/citrus): what was told of a rejected image; empty where nothing "
        "could be promised, null where no node was asked for"
    )
    score: float | None
    p_value: float
    time: float
    request_id: str
    index: int
    distance: float = Field(description="from the middle of its group")


class GroupAnswer(GroupSummary):
    shown: list[ImageShown] = Field(
        description=f"the most typical first, at most {MOST_ROWS}; the rest come after them"
    )


class AuditAnswer(BaseModel):
    """The audit sample, a random share of all traffic, in random order, so that its labels give unbiased figures."""

    shown: list[ImageShown]
    waiting: int
    note: str | None = Field(description="why nothing waits, where no sample is drawn")


class LabelsBody(BaseModel):
    """The body of POST /review/labels: what the images that somebody saw show."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"rows": [41, 42], "kind": "new", "label": "jellyfish"}]}
    )

    rows: list[Row] = Field(min_length=1, max_length=MOST_ROWS, description="of the images that were seen")
    kind: SAID
    label: str = Field(default="", max_length=1000, description="the class, for the kinds class and new")
    group: str | None = Field(
        default=None, max_length=100, pattern=WORD, description="in which they were seen; or audit"
    )
    desk: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$", description="which page of this reviewer labels")
    again: bool = Field(default=False, description="replace labels that the images have by now")


class Already(BaseModel):
    row: int
    kind: Kind
    label: str
    by: str | None


class LabelsAnswer(BaseModel):
    """What came of it, once it is kept."""

    action: int | None = Field(description="for POST /review/undo; null when nothing has changed")
    rows: list[int] = Field(description="labelled")
    gone: list[int] = Field(description="not in the ledger any more")
    already: list[Already] = Field(description="labelled by somebody meanwhile, and left as they are")


class UndoBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: Row | None = Field(default=None, description="of a label; null: your last that stands")


class UndoAnswer(BaseModel):
    rows: list[int] = Field(description="that have the label again which they had before, or none")
    changed: list[int] = Field(description="that were labelled otherwise meanwhile, and are left as they are")


class ClaimsBody(BaseModel):
    """Groups and images (row-42) that one page looks at, so that nobody else labels them meanwhile."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item] = Field(min_length=1, max_length=MOST_ROWS)
    desk: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="any random word of this page")


class ClaimsAnswer(BaseModel):
    granted: list[str]
    refused: dict[str, ClaimShown] = Field(description="what somebody else looks at")
    seconds: float = Field(description="for which the claims hold, unless they are renewed or freed")


class ProgressAnswer(BaseModel):
    waiting: int = Field(description="rejected images without a label")
    waiting_by_reason: dict[str, int] = Field(description="of these, those whose bundle told why")
    labelled: dict[str, int] = Field(description="images by kind of label")
    audit_waiting: int
    audit_labelled: int
    classes: list[str] = Field(description="of the model in service")
    new_classes: dict[str, int] = Field(description="made up by reviewers, with their images")
    reviewer: str | None = Field(description="the name of the key that asks")


class ImportAnswer(BaseModel):
    labelled: int
    already: int = Field(description="had a label, and keep it")
    unknown: list[str] = Field(description="files that are none of the kept images, the first 20")
    unknown_count: int
    skipped: int = Field(description="entries without a label")
