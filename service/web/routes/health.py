"""Is the process alive, should requests be sent here, and what does it count? None of these touches inference."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import NotReady
from service.web.context import runtime_of
from service.web.openapi import ANY_ROUTE, KEYED_ROUTE, Failure, problems
from service.web.schemas import HealthAnswer

DEAD: dict[Failure, str] = {NotReady: "the engine does not recover: start the service anew, and read its log"}

router = APIRouter(tags=["health"])


@router.get("/health/live", responses=problems("/health/live", (*ANY_ROUTE, NotReady), DEAD))
async def live(request: Request) -> HealthAnswer:
    """The process answers, and its engine has not been faulty for too long."""
    runtime_of(request).check_live()
    return HealthAnswer(status="live")


@router.get("/health/ready", responses=problems("/health/ready", (*ANY_ROUTE, NotReady)))
async def ready(request: Request) -> HealthAnswer:
    """The model is verified and runs, and the service is not draining."""
    runtime_of(request).check_ready()
    return HealthAnswer(status="ready")


@router.get("/metrics", response_class=Response, responses={
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **problems("/metrics", KEYED_ROUTE),
})  # fmt: skip
async def metrics(request: Request) -> Response:
    """Everything counted since the start, for Prometheus."""
    return Response(await runtime_of(request).render_metrics(), headers={"content-type": CONTENT_TYPE_LATEST})
