"""DELETE /requests/{id}: have nothing kept of the images of a request."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.errors import NotFound
from service.settings import PREFIX
from service.web.context import context_of
from service.web.openapi import EXAMPLE_ID, MODEL_ROUTE, path_parameters, problems
from service.web.routes.feedback import MAX_ID_CHARACTERS

UNKNOWN = f"the ledger holds no image of request {EXAMPLE_ID}: nothing of it is kept"

router = APIRouter(tags=["feedback"])


class ForgetAnswer(BaseModel):
    """What was forgotten. The decision itself stays and is counted; it holds nothing of the picture."""

    request_id: str
    images: int = Field(description="of the request, whether anything was kept of them or not")


@router.delete(
    "/requests/{id}",
    responses=problems(f"/requests/{EXAMPLE_ID}", (*MODEL_ROUTE, NotFound), {NotFound: UNKNOWN}),
    openapi_extra={"parameters": path_parameters("id")},
)
async def forget(request: Request) -> ForgetAnswer:
    """Forget the images of a request: files, thumbnails, embeddings and labels. Again is no error.

    The id is that of the answer; or the client's own, and then all of the key's requests with that id are meant. The
    key must be the one that the request was sent with, or one with the role review. A file stays while another request
    has sent the same one.
    """
    context = context_of(request)
    context.runtime.in_force()
    ledger, key, given = context.runtime.ledger, context.key, request.path_params["id"]
    if ledger is None:
        raise NotFound(f"this service keeps no ledger, so it knows no request: {PREFIX}LEDGER is off")
    if len(given) > MAX_ID_CHARACTERS or not given.isprintable():  # PostgreSQL would refuse all that is written with it
        raise NotFound(f"{given[:MAX_ID_CHARACTERS]!a} is no id of a request: nothing of it is kept")
    may_review = key is not None and "review" in key.roles
    images = await ledger.forget(given, key=None if key is None else key.name, may_review=may_review)
    return ForgetAnswer(request_id=given, images=images)
