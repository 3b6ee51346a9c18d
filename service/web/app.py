"""The wiring of the HTTP side: `create_app(settings)` makes the ASGI application; `python -m service serve` runs it.

server → connection → RequestMiddleware → CORS → AccessMiddleware → routes → admission → routes/classify.py
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from service.deploy.following import follow
from service.review.front import Front
from service.runtime import Runtime
from service.settings import Settings
from service.settings.places import listed
from service.web import document, pages
from service.web.access import Keys
from service.web.limits import BodyBudget
from service.web.middleware import AccessMiddleware, RequestMiddleware
from service.web.oip import routes as oip
from service.web.origins import Origins
from service.web.problems import Problems
from service.web.routes import admin, classify, deploy, embed, feedback, health, model, requests, review, review_files
from service.web.routes import image_classification as pipeline

ROUTERS = (
    classify.router, embed.router, pipeline.router, model.router, feedback.router, requests.router, review.router,
    review_files.router, health.router, admin.router, deploy.router, oip.router, pages.router,
)  # fmt: skip
EXPOSED_HEADERS = ["Retry-After", "X-Request-Id", "X-Client-Request-Id"]


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan raises BundleError, EngineError or SettingsError before any port is opened."""
    app = FastAPI(
        title="TailGuard",
        version="1",
        description="Classifies an image, says how uncertain it is, and accepts or rejects it at a threshold.",
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other hosts; ours is pages/docs.html
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # service/observe has its own
        generate_unique_id_function=document.operation_id,
        redirect_slashes=False,  # behind a proxy with TLS a redirect would lead from https to http
    )
    app.state.runtime = runtime = Runtime(settings)
    app.state.review = app.state.review_known = None  # made when somebody reviews
    app.state.keys = keys = Keys(settings)
    app.state.budget = budget = BodyBudget(settings.max_receiving_bytes)
    problems = Problems(runtime.metrics)
    problems.install(app)
    app.router.routes += classify.direct_routes  # before those that FastAPI documents
    for router in ROUTERS:
        app.include_router(router)
    document.install(app, keys_required=keys.required)
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    # From the innermost to the outermost.
    app.add_middleware(AccessMiddleware, keys=keys, origins=Origins(settings, keys.required), problems=problems)
    if settings.cors_origins:
        origins = listed(settings.cors_origins)
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )  # fmt: skip
    app.add_middleware(RequestMiddleware, runtime=runtime, budget=budget, routes=routes)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    try:
        runtime.start()
    except Exception as error:
        runtime.failure = error  # for the one line that the process says; uvicorn keeps it to itself
        raise
    following = asyncio.create_task(follow(runtime))
    try:
        yield
    finally:
        following.cancel()
        front: Front | None = app.state.review
        if front is not None:
            await asyncio.to_thread(front.close)
        await runtime.stop()
