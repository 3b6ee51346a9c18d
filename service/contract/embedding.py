"""What a manifest says of the graph's embedding and of the training examples that travel with it."""

from pydantic import Field, model_validator

from service.contract.reference import Frozen

EMBEDDING = "embedding"  # the graph's output, float32 [N, dimensions], each row of length 1
MOST_DIMENSIONS = 8192


class Embedding(Frozen):
    """The graph gives `embedding`: like images lie near each other, by the cosine of their rows."""

    dimensions: int = Field(gt=0, le=MOST_DIMENSIONS)
    made_from: str  # which features, how reduced, and what the reduction cost: a sentence or two


class ExemplarFile(Frozen):
    """A file of training images as embeddings, some of each class; read by service.contract.exemplars."""

    file: str
    count: int = Field(gt=0)
    chosen: str  # how they were chosen, and how well they stand for all training images: a sentence or two
    thumbnails: int = Field(default=0, ge=0)  # how many have a picture
    thumbnails_licence: str | None = None  # the terms of those pictures

    @model_validator(mode="after")
    def _licence_of_pictures(self) -> "ExemplarFile":
        if self.thumbnails > self.count:
            raise ValueError(f"{self.thumbnails} thumbnails of {self.count} exemplars: at most one each")
        if self.thumbnails and not self.thumbnails_licence:
            raise ValueError("exemplars with thumbnails need thumbnails_licence, the terms of the pictures")
        return self
