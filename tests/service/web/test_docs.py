"""The page of the API in a real browser: every call of the document, with its errors, and nothing from elsewhere."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import serving


@pytest.mark.parametrize("width_px", [390, 1200])
def test_every_call_is_shown(browser: Any, tiny_bundle: Path, width_px: int) -> None:
    with serving(tiny_bundle, api_key="k") as url:
        document = httpx.get(f"{url}/openapi.json").json()
        page = browser.new_page(viewport={"width": width_px, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/docs#put_bundle")
        page.wait_for_selector("#put_bundle[open]")  # the link to one call opens it
        shown = {(call.locator(".method").inner_text().lower(), call.locator("code").first.inner_text())
                 for call in page.locator("details.call").all()}  # fmt: skip
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width_px
        assert page.locator("#put_bundle pre").first.inner_text().startswith('curl -X PUT -H "X-API-Key: $KEY"')
        assert "the bundle in service stays" in page.locator("#put_bundle").inner_text()
        page.close()
    assert shown == {(method, path) for path, calls in document["paths"].items() for method in calls}
    assert said == []
    assert all(address.startswith(url) for address in asked)
