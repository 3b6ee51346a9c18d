"""service/web/middleware.py: ids, headers, CORS, and the route that refusals are counted and logged under."""

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))


@pytest.mark.parametrize("given", ["abc-1.2_3:4", "x" * 128])
def test_request_id_is_passed_on(client: TestClient, given: str) -> None:
    response = client.post("/classify", content=RED, headers=PNG | {"x-request-id": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "a;b", '"', "<script>"])
def test_unusable_request_id_is_replaced(client: TestClient, given: str) -> None:
    made = client.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]
    assert made != given
    assert len(made) == 32


def test_security_headers_and_no_cors(client: TestClient) -> None:
    for response in (client.get("/"), client.post("/classify", content=RED, headers=PNG), client.get("/nope")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
    foreign = client.get("/model", headers={"origin": "https://example.org"})
    assert "access-control-allow-origin" not in foreign.headers


def test_cors_for_the_origins_named(settings: Settings) -> None:
    changes = {"cors_origins": "https://a.example, https://b.example", "api_key": "k"}
    with TestClient(create_app(Settings(**settings.model_dump(exclude={"api_key"}) | changes))) as client:
        for origin, shown in [("https://b.example", "https://b.example"), ("https://c.example", None)]:
            for key, status in (("k", 200), ("wrong", 401)):  # a page can read why it was refused
                response = client.post("/classify", content=RED, headers=PNG | {"origin": origin, "x-api-key": key})
                assert response.status_code == status
                assert response.headers.get("access-control-allow-origin") == shown
                if shown:
                    assert response.headers["access-control-expose-headers"] == "Retry-After, X-Request-Id"
        asked = {"origin": "https://a.example", "access-control-request-method": "POST",
                 "access-control-request-headers": "x-api-key"}  # fmt: skip
        preflight = client.options("/classify", headers=asked)
        assert preflight.status_code == 200
        assert "x-request-id" in preflight.headers
        assert preflight.headers["x-content-type-options"] == "nosniff"
        text = client.get("/metrics", headers={"x-api-key": "k"}).text
        assert 'tailguard_requests_total{method="OPTIONS",route="/classify",status="200"} 1.0' in text


def test_refusals_are_counted_and_logged_under_their_route(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    keyed = {"api_keys": "ci=k3y", "admin_keys": "ops=4dm1n", "requests_per_s": 1e-6,
             "burst_requests": 1}  # fmt: skip
    with TestClient(create_app(Settings(**settings.model_dump() | keyed))) as client:
        named = "/v2/models/{name}/versions/{version}/infer"
        for method, path, route, key, status in (
            ("POST", "/classify", "/classify", "", 401),
            ("GET", "/model/examples/x.png", "/model/examples/{name}", "wrong", 401),
            ("POST", "/v2/models/a/versions/1/infer", named, "", 401),
            ("PUT", "/admin/bundle", "/admin/bundle", "k3y", 403),
            ("GET", "/model", "/model", "k3y", 200),
            ("GET", "/stats", "/stats", "k3y", 429),
            ("GET", "/nowhere", "unmatched", "", 401),
        ):
            response = client.request(method, path, headers={"x-api-key": key, "x-request-id": f"id-{status}"})
            assert response.status_code == status, response.text
            seen = client.app.state.runtime.metrics.registry.get_sample_value(  # type: ignore[attr-defined]
                "tailguard_requests_total", {"route": route, "method": method, "status": str(status)}
            )
            assert seen == 1, (path, route)
            said = "".join(capsys.readouterr())
            assert (f"route={route} status={status}" in said) == (status != 200), said


def test_redirects_are_none(client: TestClient) -> None:
    """Behind a proxy with TLS they would lead from https to http."""
    assert client.post("/classify/", content=RED, headers=PNG, follow_redirects=False).status_code == 404
