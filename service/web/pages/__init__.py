"""Which pages does the service show? To try the model, to review images, the API; each one file, nothing foreign."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

PAGE, DOCS, REVIEW = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("index.html", "docs.html", "review.html")
)
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The page to try the model."""
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API, drawn from /openapi.json."""
    return HTMLResponse(DOCS, headers=PAGE_HEADERS)


@router.get("/review", response_class=HTMLResponse, include_in_schema=False)
async def review() -> HTMLResponse:
    """The page on which people say what kept images show; what it asks for needs the role review."""
    return HTMLResponse(REVIEW, headers=PAGE_HEADERS)
