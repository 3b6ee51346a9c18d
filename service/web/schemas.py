"""The bodies of the HTTP answers. Times are in milliseconds, sizes in pixels, shares and probabilities in [0, 1]."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.contract.bundle import Cost
from service.contract.decision import Decision, Scope
from service.contract.embedding import Embedding, ExemplarFile
from service.contract.heat_map import HeatMap
from service.contract.reasons import Reason, Reasons, Unfit
from service.contract.reference import ClassGroup
from service.ledger.rows import Outcome
from service.web.more_schemas import HeatMapAnswer, NeighbourAnswer
from service.web.said import ClassSet, TaxonomyNode

NOT_FINITE = "null: the graph gave no finite number; such an image is rejected"


class ClassifyQuery(BaseModel):
    """What a request may ask for beyond the deployment's defaults: the query of POST /classify."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(default=None, ge=1, description="classes to name, at most all; default 5")
    operating_point: str | None = Field(default=None, description="one of the model's; see GET /model")
    thresholds: Scope | None = Field(default=None, description="by group of the predicted class, or one for all")
    neighbours: int | None = Field(default=None, ge=1, description="training examples to name, the nearest first")
    embedding: bool = Field(default=False, description="answer with the embedding too")
    map: bool = Field(default=False, description="answer with the heat map too")
    set: float | None = Field(default=None, gt=0, lt=1, description="level of a conformal set of classes, 0.9 say")


class PipelineQuery(BaseModel):
    """What the address of POST /v1/image-classification may ask for: its clients can pass on no more."""

    model_config = ConfigDict(extra="forbid")

    operating_point: str | None = Field(default=None, description="one of the model's; see GET /model")
    thresholds: Scope | None = Field(default=None, description="by group of the predicted class, or one for all")


class ModelName(BaseModel):
    name: str
    version: str


class ClassProbability(BaseModel):
    label: str
    class_index: int
    probability: float | None = Field(description=NOT_FINITE)


class DecidingScore(BaseModel):
    """The score compared with the threshold: the image is rejected when `value` is strictly larger."""

    name: str
    value: float | None = Field(description=NOT_FINITE)
    threshold: float
    scope: Scope = Field(description="group: the threshold of the predicted class's group; global: one for all")
    operating_point: str


class ImageSize(BaseModel):
    """The upload as a viewer shows it, after EXIF orientation."""

    width_px: int
    height_px: int


class StageTimes(BaseModel):
    """queue_ms: waiting for a decode thread and for the engine; total_ms: from the first byte to the decision."""

    receive_ms: float
    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


class Answer(BaseModel):
    """One classified image."""

    request_id: str
    model: ModelName
    label: str
    class_index: int
    group: str
    probability: float | None = Field(description=NOT_FINITE)
    top_k: list[ClassProbability]
    scores: dict[str, float | None] = Field(description="every score of the bundle, larger = more outlying")
    deciding_score: DecidingScore
    p_value: float = Field(
        description="share of calibration images at least as outlying, of those predicted in the same group where "
        "thresholds are by group; bounds false alarms on in-distribution images only"
    )
    decision: Decision
    reason: Reason | None = Field(
        default=None,
        description="why it is rejected. unknown: like nothing in training; unsure: known, but between classes, or "
        "refused only because this operating point is stricter than the default; unfit: the "
        "picture allows no answer. null: accepted; left out by a bundle that does not tell them apart",
    )
    unfit: Unfit | None = Field(default=None, description="what is the matter with an unfit picture")
    set: ClassSet | None = Field(default=None, description="where the request asked for one")
    taxonomy: TaxonomyNode | None = Field(
        default=None, description="what can still be said of a refused image, where the model has a taxonomy"
    )
    image: ImageSize
    stage_times: StageTimes
    neighbours: list[NeighbourAnswer] | None = Field(default=None, description="only where asked for")
    embedding: list[float] | None = Field(
        default=None, description="of length 1, null where it is not finite; only where asked for"
    )
    map: HeatMapAnswer | None = Field(default=None, description="only where asked for, and finite")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f",
                    "model": {"name": "cifar10-lt", "version": "1"},
                    "label": "cat",
                    "class_index": 3,
                    "group": "medium",
                    "probability": 0.91,
                    "top_k": [{"label": "cat", "class_index": 3, "probability": 0.91}],
                    "scores": {"energy": -7.2, "msp": 0.09},
                    "deciding_score": {
                        "name": "energy",
                        "value": -7.2,
                        "threshold": -4.1,
                        "scope": "group",
                        "operating_point": "id95",
                    },
                    "p_value": 0.63,
                    "decision": "accept",
                    "image": {"width_px": 640, "height_px": 427},
                    "stage_times": {
                        "receive_ms": 0.4,
                        "decode_ms": 2.1,
                        "queue_ms": 0.2,
                        "inference_ms": 4.8,
                        "total_ms": 7.6,
                    },
                }
            ]
        }
    )


class Problem(BaseModel):
    """RFC 9457 problem details; `detail` says what is wrong, with the value, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    error: str | None = Field(default=None, description="the detail again, under /v1 alone: its clients look for it")


class BatchItem(BaseModel):
    """Either an answer or a problem, never both."""

    file: str = Field(description="the file name of the part, or its position")
    index: int | None = Field(default=None, description="its place in the request, which POST /feedback asks for")
    answer: Answer | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    request_id: str
    results: list[BatchItem] = Field(description="one for each file, in the order sent")


class FeedbackAnswer(BaseModel):
    """What was decided about the image, and how it turned out."""

    request_id: str
    index: int
    model: ModelName = Field(description="that decided; perhaps not the one in service now")
    predicted: str
    group: str = Field(description="of the predicted class")
    decision: Decision
    label: str = Field(description="the true one, as told")
    outcome: Outcome = Field(description="predicted against true, whether the image was accepted or not")


class ScoreRange(BaseModel):
    """The ends of what calibration saw of the deciding score, in-distribution images and outliers together."""

    low: float
    high: float


class OperatingPointSummary(BaseModel):
    description: str
    level: float | None = Field(description="share of in-distribution images that are kept; null: made from outliers")
    threshold: float
    group_thresholds: dict[str, float]
    class_thresholds: dict[str, float] = Field(default={}, description="of single classes, in place of their group's")
    group_promises: dict[str, float] = Field(description="share of in-distribution images refused at most")
    global_cost: dict[str, Cost | None] = Field(description="of the one threshold, on calibration and test images")
    group_cost: dict[str, Cost | None] = Field(description="of the thresholds by group, on the same images")


class ModelSummary(BaseModel):
    """What is in service and what decides."""

    name: str
    version: str
    created: str
    sha256: str = Field(description="of the graph")
    precision: str
    passes: int
    method: str
    dataset: str
    provider: str
    input: dict[str, Any]
    groups: list[ClassGroup] = Field(description="from the most frequent classes to the rarest")
    classes: list[str]
    scores: list[str]
    deciding_score: str
    deciding_score_range: ScoreRange
    operating_point: str = Field(description="in force unless a request names another")
    threshold_scope: Scope
    operating_points: dict[str, OperatingPointSummary]
    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    provenance: dict[str, Any]
    examples: list[str] = Field(description="names for GET /model/examples/{name}")
    embedding: Embedding | None = Field(default=None, description="what the graph gives for likeness, if it does")
    exemplars: ExemplarFile | None = Field(default=None, description="training images that travel as embeddings")
    heat_map: HeatMap | None = Field(default=None, description="what a heat map is made from, if there is one")
    sets: bool = Field(default=False, description="whether `set` may be asked for; figures: GET /model/classes")
    taxonomy: bool = Field(default=False, description="whether a refused image may be told a node above the classes")
    reasons: Reasons | None = Field(default=None, description="how rejections are told apart, and their shares")


class HealthAnswer(BaseModel):
    status: str
