"""service/web/middleware.py: ids, headers, CORS, and the route that refusals are counted and logged under."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import EXPOSED_HEADERS, create_app
from tests.service import asgi, tiny
from tests.service.asgi import assert_problem

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))


def test_the_id_of_the_service_is_its_own_and_the_clients_stands_beside_it(client: TestClient) -> None:
    for given in ("abc-1.2_3:4", "x" * 128):
        both = [client.post("/classify", content=RED, headers=PNG | {"x-request-id": given}) for _ in range(2)]
        ids = [response.headers["x-request-id"] for response in both]
        assert ids == [response.json()["request_id"] for response in both]
        assert len({given, *ids}) == 3
        assert [response.headers["x-client-request-id"] for response in both] == [given, given]


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "a;b", "<script>"])
def test_unusable_request_id_is_not_repeated(client: TestClient, given: str) -> None:
    headers = client.get("/health/live", headers={"x-request-id": given}).headers
    assert "x-client-request-id" not in headers
    assert len(headers["x-request-id"]) == 32


def test_head_is_get_without_its_body(client: TestClient) -> None:
    for path in (
        "/",
        "/model",
        "/metrics",
        "/health/live",
        "/model/examples/red.png",
        "/v2/models/tiny",
        "/openapi.json",
    ):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == got.headers["content-length"]
    assert client.head("/classify").status_code == 405
    assert client.head("/nowhere").status_code == 404


def test_unknown_query_parameters_are_refused_by_name(client: TestClient, document: dict[str, Any]) -> None:
    wrong = client.post("/classify?operating_pont=ood95", content=RED, headers=PNG)
    assert_problem(wrong, 422, "operating_pont is not known here: did you mean operating_point?", document)
    for method, path in (("GET", "/model"), ("GET", "/stats"), ("POST", "/feedback"), ("GET", "/metrics")):
        assert_problem(client.request(method, f"{path}?top_k=1"), 422, "top_k is not known here", document)
    assert client.post("/v2/models/tiny/infer?operating_point=ood95", json={}).status_code == 400
    assert client.get("/?from=elsewhere").status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/classify/batch", "/v1/image-classification"])
def test_a_parameter_given_twice_is_refused(client: TestClient, document: dict[str, Any], path: str) -> None:
    """The last one was taken, and nothing said which."""
    for query in ("thresholds=group&thresholds=global", "thresholds=group&%74hresholds=group", "thresholds&thresholds"):
        answer = client.post(f"{path}?{query}", content=RED, headers=PNG)
        assert_problem(answer, 422, "thresholds is given twice: give it once", document)
    again = client.get("/review/groups?reason=unknown&reason=unsure")
    assert_problem(again, 422, "reason is given twice", document)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("X-Request-Timeout-Ms", ("1", "9000")),
        ("Content-Type", ("image/png", "text/plain")),
        ("Content-Encoding", ("identity", "gzip")),
        ("X-Api-Key", ("k", "another")),
        ("Authorization", ("Bearer k", "Bearer another")),
    ],
)
def test_a_header_given_twice_is_refused(
    settings: Settings, document: dict[str, Any], name: str, values: tuple[str, str]
) -> None:
    """The first one was taken, and nothing said which: of two keys that of another, of two limits a millisecond."""
    headers = [(name, value) for value in values] + [("x-forwarded-for", "a"), ("x-forwarded-for", "b")]
    with TestClient(create_app(Settings(**settings.model_dump() | {"api_key": "k"}))) as client:
        answer = client.post("/classify", content=RED, headers=headers)
    assert_problem(answer, 400, f"the request has 2 {name} headers: send one", document)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("testserver", 200),
        ("app.localhost", 200), ("192.168.1.5", 200), ("evil.example", 403), ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403),
    ],
)  # fmt: skip
def test_loopback_without_a_key_answers_local_names_only(client: TestClient, host: str, status: int) -> None:
    for path in ("/stats", "/metrics", "/model"):
        assert client.get(path, headers={"host": host}).status_code == status
    if status == 403:
        assert "TAILGUARD_ALLOWED_HOSTS" in client.get("/model", headers={"host": host}).json()["detail"]


@pytest.mark.parametrize(
    ("changes", "host", "status"),
    [
        ({"api_key": "k"}, "any.example", 200),
        ({"allowed_hosts": "a.example, b.example"}, "b.example:80", 200),
        ({"allowed_hosts": "a.example, b.example"}, "localhost", 403),
        ({"allowed_hosts": "*"}, "any.example", 200),
        ({"allowed_hosts": "a.example", "api_key": "k"}, "any.example", 403),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "any.example", 200),
    ],
)
def test_allowed_hosts(settings: Settings, changes: dict[str, Any], host: str, status: int) -> None:
    with TestClient(create_app(Settings(**settings.model_dump() | changes))) as client:
        assert (
            client.get(
                "/model", headers={"host": host, "x-api-key": "k"} if "api_key" in changes else {"host": host}
            ).status_code
            == status
        )


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"])
def test_a_probe_may_ask_by_any_name(settings: Settings, path: str) -> None:
    """kubelet asks a pod by its address, which no list of host names has; nothing else is told under that name."""
    changed = Settings(**settings.model_dump() | {"allowed_hosts": "a.example"})
    with TestClient(create_app(changed)) as client:
        assert client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200
        assert client.get("/model", headers={"host": "10.1.2.3:8000"}).status_code == 403


def test_one_host_header(settings: Settings) -> None:
    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def body() -> None:
        async with asgi.running(settings) as (app, _):
            status, _, problem = await asgi.post(app, "/health/live", {"host": "a", "Host": "b"}, nothing, "GET")
            assert (status, problem["detail"]) == (400, "the request has 2 Host headers: send one")

    asyncio.run(body())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://testserver"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://testserver:81"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://page.example"}, 200),
    ],
)
def test_foreign_pages_may_not_ask_without_a_key(settings: Settings, headers: dict[str, str], status: int) -> None:
    with TestClient(create_app(settings.model_copy(update={"cors_origins": "https://page.example"}))) as client:
        assert client.post("/classify", content=RED, headers=PNG | headers).status_code == status
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert client.get("/model", headers=link).status_code == 200
    keyed = Settings(**settings.model_dump() | {"api_key": "k"})
    with TestClient(create_app(keyed)) as client:
        assert client.post("/classify", content=RED, headers=PNG | headers | {"x-api-key": "k"}).status_code == 200


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
                    assert response.headers["access-control-expose-headers"] == ", ".join(EXPOSED_HEADERS)
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
