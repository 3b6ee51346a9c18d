"""What an answer holds only where it was asked for: training examples, the embedding, the heat map."""

from pydantic import BaseModel, Field


class NeighbourAnswer(BaseModel):
    """One training example near the image."""

    label: str
    class_index: int
    distance: float = Field(description="1 - cosine of the embeddings: 0 the same direction, 2 the opposite one")
    exemplar: int = Field(description="its place among the bundle's training examples")
    thumbnail: str | None = Field(description="path of its picture on this service, where the bundle holds one")


class Box(BaseModel):
    """A part of the upload as a viewer shows it, in pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


class HeatMapAnswer(BaseModel):
    """Where the evidence for `label` lies: a class activation map.

    The mean of all values is the class's logit, before the temperature and less its bias; below 0 a position speaks
    against the class.
    """

    width: int = Field(description="positions from left to right")
    height: int = Field(description="positions from top to bottom")
    values: list[float] = Field(description="height rows of width values, from the upper left")
    box: Box = Field(description="the part of the picture that the model saw and the map lies over")
