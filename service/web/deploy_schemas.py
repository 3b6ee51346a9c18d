"""The bodies and answers of the routes that change what runs: bundle, operating point, keys, shadow, promote, back."""

from pydantic import BaseModel, ConfigDict, Field

from service.contract.decision import Scope


class OperatingPointChange(BaseModel):
    """The body of PUT /admin/operating-point; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    operating_point: str | None = Field(default=None, description="one of the model's; see GET /model")
    threshold_scope: Scope | None = None


class BundleChange(BaseModel):
    """The body of PUT /admin/bundle; what is left out is as the deployment chose it, else the bundle decides."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096, description="folder on the service's disk, or address")
    operating_point: str | None = None
    threshold_scope: Scope | None = None


class InForce(BaseModel):
    """What decides from now on."""

    name: str
    version: str
    sha256: str
    provider: str
    operating_point: str
    threshold_scope: Scope
    seconds: float | None = Field(description="how long loading, verifying and warming up took")


class KeysRead(BaseModel):
    keys: int


class ShadowChange(BaseModel):
    """The body of PUT /admin/shadow."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="folder or address of the bundle; null: no shadow any more",
    )
    share: float | None = Field(default=None, gt=0, le=1, description="of the images; not given: the settings'")


class ShadowInForce(BaseModel):
    """The shadow of this replica, if there is one."""

    path: str | None
    name: str | None = None
    version: str | None = None
    sha256: str | None = None
    share: float | None = None


class PromotionAsked(BaseModel):
    """The body of POST /admin/promote. Shares in [0, 1]."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(default=None, min_length=1, max_length=4096, description="not given: the shadow")
    force: bool = Field(default=False, description="whatever the evidence says")
    least_compared: int = Field(default=200, ge=0)
    most_disagreement: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of the images that the model in force accepted: refused or named otherwise",
    )
    most_newly_accepted: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of all images: refused before, now accepted under a class of which nobody reviewed an image",
    )
    least_reviewed: int = Field(default=20, ge=0)


class EvidenceShown(BaseModel):
    """What was known of the shadow when it was promoted; shares in [0, 1], null of no images."""

    compared: int
    accepted: int = Field(description="of the compared, by the model in force")
    disagreement: float | None = Field(description="of these")
    newly_accepted: float | None = Field(description="of the compared; not those of classes that it was taught")
    reviewed: int
    sampled: int
    right_before: float | None = Field(description="of the sampled reviewed images, by the model in force")
    right_after: float | None
    outliers: int = Field(description="confirmed ones that the model in force refused")
    caught: float | None
    objections: list[str]


class Promoted(BaseModel):
    """What decides from now on, and why."""

    in_force: InForce
    evidence: EvidenceShown | None = Field(description="null where there was no shadow")


class BackAsked(BaseModel):
    """The body of POST /admin/back."""

    model_config = ConfigDict(extra="forbid")

    to: str | None = Field(default=None, description="NAME/VERSION of an earlier one; not given: the one before")
