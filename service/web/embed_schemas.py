"""The body of the answer to POST /embed."""

from pydantic import BaseModel, Field

from service.web.schemas import ModelName, Problem


class EmbeddedImage(BaseModel):
    """Either an embedding or a problem, never both."""

    file: str = Field(description="the file name of the part, or its position")
    embedding: list[float] | None = Field(default=None, description="of length 1")
    problem: Problem | None = None


class EmbedAnswer(BaseModel):
    request_id: str
    model: ModelName
    dimensions: int
    results: list[EmbeddedImage] = Field(description="one for each file, in the order sent")
