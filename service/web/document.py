"""The OpenAPI document as a whole: names that generated clients can use, tags, keys and the headers of every answer."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.web.access import OPEN_PATHS, role_of

TAGS = {
    "classify": "Images to decisions.",
    "feedback": "What the images turned out to be.",
    "review": "What was refused, for a person to look at.",
    "model": "What is in service, and how it does.",
    "health": "For balancers and orchestrators.",
    "metrics": "For Prometheus.",
    "admin": "What an admin key may change while the service runs.",
    "inference protocol": "Open Inference Protocol v2, as KServe and Triton speak it.",
}
SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "the same API key"},
}
HEADERS = {
    "X-Request-Id": {
        "description": "the service's own id of the request; feedback names it",
        "schema": {"type": "string"},
    },
    "X-Client-Request-Id": {
        "description": "the X-Request-Id that the request was sent with, where it had one",
        "schema": {"type": "string"},
    },
}


def operation_id(route: APIRoute) -> str:
    """The name of the endpoint, which generated clients make their method of."""
    return f"{route.name}_of_version" if "{version}" in route.path else route.name


def install(app: FastAPI, *, keys_required: bool) -> None:
    """Let `app.openapi()` give the document with keys and headers, once it has been asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain(), keys_required)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any], keys_required: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components["securitySchemes"] = SCHEMES
    components["headers"] = HEADERS
    used = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            used.update(operation.get("tags", ()))
            if path not in OPEN_PATHS:
                operation["security"] = [{name: []} for name in SCHEMES] + ([] if keys_required else [{}])
                if role := role_of(path):
                    said = operation.get("description", "")
                    operation["description"] = f"{said}\n\nA key needs the role {role}.".strip()
            for response in operation["responses"].values():
                named = {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS}
                response["headers"] = named | response.get("headers", {})
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    return document
