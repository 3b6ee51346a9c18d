"""POST /embed: images to vectors, by which like images lie near each other. Nothing is decided, and nothing kept."""

import io
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from service.errors import EngineError, InvalidImage, Overloaded, TailGuardError, kind_of
from service.web.admission import Admitted, admit
from service.web.answers import rounded
from service.web.body import read_images
from service.web.embed_schemas import EmbedAnswer
from service.web.forms import Upload
from service.web.openapi import IMAGE_ROUTE, MANY_FILES, Failure, problems
from service.web.record import count_row
from service.web.routes.classify import JSON, each, problem_of
from service.web.schemas import ClassifyQuery

NPY = "application/x-npy"
ASKED = ClassifyQuery(embedding=True)
SAID: dict[Failure, str] = {InvalidImage: "a.png: the image is empty (0 bytes): send the content of an image file"}

router = APIRouter(tags=["classify"])


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    responses={
        200: {"content": {NPY: {"schema": {"type": "string", "format": "binary"}}}},
        **problems("/embed", IMAGE_ROUTE, SAID),
    },
    openapi_extra=MANY_FILES,
)
async def embed(request: Request) -> Response:
    """The embeddings of several images: a list of numbers or a problem for each, in the order sent.

    With `Accept: application/x-npy` the answer is a NumPy file, float32 [images, dimensions], and the first image that
    cannot be read is the whole answer. When every image was shed or failed by the service (429, 5xx), the whole request
    is answered so.
    """
    async with admit(request, read_images, ASKED, images=len) as admitted:
        results = await each(request, admitted, _item)
    if NPY in request.headers.get("accept", ""):
        return Response(_npy(results), media_type=NPY)
    manifest = admitted.model.manifest
    assert manifest.embedding is not None  # admit has refused it
    found = {
        "request_id": admitted.context.request_id,
        "model": {"name": manifest.name, "version": manifest.version},
        "dimensions": manifest.embedding.dimensions,
        "results": [
            {"file": result.file, "embedding": None if result.row is None else rounded(result.row),
             "problem": result.problem}
            for result in results
        ],
    }  # fmt: skip
    return Response(to_json(found), media_type=JSON)


class _Result(NamedTuple):
    file: str
    row: NDArray[np.float32] | None = None
    problem: dict[str, Any] | None = None
    error: TailGuardError | None = None


async def _item(
    request: Request, admitted: Admitted[list[Upload]], position: int, upload: Upload, failures: list[TailGuardError]
) -> _Result:
    name = upload.filename or str(position)
    try:
        row = await admitted.submit(upload.data)
        if row.embedding is None or not np.isfinite(row.embedding).all():
            raise EngineError(f"{name}: the model gives no finite embedding of this image: it lies near no other")
    except TailGuardError as error:
        return _Result(name, problem=problem_of(request, admitted, position, error, failures), error=error)
    count_row(admitted, row, perf_counter())
    return _Result(name, row.embedding)


def _npy(results: list[_Result]) -> bytes:
    """float32 [N, D]. Raises for the first image that has no embedding: InvalidImage, or what the service failed at."""
    for result in results:
        if result.error is not None:
            if isinstance(result.error, Overloaded) or kind_of(result.error).status >= 500:
                raise result.error  # it is not the image
            raise InvalidImage(f"{result.file}: {result.error}")
    buffer = io.BytesIO()
    np.save(buffer, np.stack([result.row for result in results if result.row is not None]), allow_pickle=False)
    return buffer.getvalue()
