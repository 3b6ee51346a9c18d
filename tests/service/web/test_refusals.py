"""Every bad input gets its problem document, as OpenAPI announces, and the service goes on."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny
from tests.service.asgi import assert_problem, form
from tests.service.contract.test_images import encode, png

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))


JPEG = encode(Image.effect_noise((64, 64), 80), "JPEG")
BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("empty body", {"content": b"", "headers": PNG}, 422, "0 bytes"),
    ("empty file", {"files": form(b"")}, 422, "0 bytes"),
    ("text as image", {"content": b"hello", "headers": PNG}, 415, "JPEG, PNG"),
    ("text in form", {"files": form(b"hello")}, 415, "JPEG, PNG"),
    ("text", {"content": b"hello", "headers": {"content-type": "text/plain"}}, 415, "content type text/plain"),
    ("no content type", {"content": RED}, 415, "content type none"),
    ("curl's default", {"data": {"a": "b"}}, 415, "application/x-www-form-urlencoded"),
    ("truncated", {"content": JPEG[:-300], "headers": {"content-type": "image/jpeg"}}, 422, "damaged or cut short"),
    ("0 pixels", {"content": png(0, 0, 8, 2), "headers": PNG}, 422, "no pixels"),
    ("200 megapixels", {"content": png(20_000, 10_000, 8, 2), "headers": PNG}, 422, "200000000 pixels"),
    ("field name", {"files": form(RED, "image")}, 422, "the form has no field 'file': found 'image'"),
    ("two files", {"files": form(RED) + form(RED)}, 422, "2 files"),
    ("no boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ("no form", {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "malformed"),
    ("20 MB", {"content": bytes(20_000_000), "headers": PNG}, 413, "the body has 20000000 bytes"),
    ("20 MB form", {"files": form(bytes(20_000_000))}, 413, "the limit is 100000"),
    ("point", {"content": RED, "headers": PNG, "params": {"operating_point": "id99"}}, 422, "id95, ood95"),
    ("top_k 0", {"content": RED, "headers": PNG, "params": {"top_k": "0"}}, 422, "top_k=0"),
    ("top_k 4", {"content": RED, "headers": PNG, "params": {"top_k": "4"}}, 422, "so 1 to 3"),
    ("top_k x", {"content": RED, "headers": PNG, "params": {"top_k": "x"}}, 422, "top_k=x"),
    ("scope", {"content": RED, "headers": PNG, "params": {"thresholds": "class"}}, 422, "'group' or 'global'"),
]  # fmt: skip


def test_bad_input(client: TestClient, document: dict[str, Any]) -> None:
    for _, sent, status, words in BAD:
        assert_problem(client.post("/classify", **sent), status, words, document)
        assert client.post("/classify", content=RED, headers=PNG).status_code == 200
        assert client.app.state.runtime.model.pipeline.held == 0  # type: ignore[attr-defined]
        assert client.app.state.budget.held_bytes == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/feedback", "/review/labels", "/review/undo", "/review/claims"])
def test_a_name_given_twice_in_json_is_refused(client: TestClient, document: dict[str, Any], path: str) -> None:
    """The last one was taken: an image could get the label that was not meant."""
    body = b'{"request_id": "x", "label": "red", "l\\u0061bel": "blue"}'
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert_problem(answer, 422, "'label' is named twice: give it one value", document)


def test_bad_batch(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"queue_images": 8}))) as client:
        document = client.get("/openapi.json").json()
        for sent, status, words in (
            ({"content": RED, "headers": PNG}, 415, "fields 'files'"),
            ({"files": form(RED, "image")}, 422, "no field 'files' or 'file'"),
            ({"files": form(bytes(20_000_000), "files")}, 413, "limit"),
            ({"files": form(RED, "files") * 9}, 422, "at most 8"),
        ):
            assert_problem(client.post("/classify/batch", **sent), status, words, document)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/classify", 405), ("DELETE", "/model", 405), ("GET", "/model/examples/no", 404)],
)
def test_framework_refusals_are_problems_too(
    client: TestClient, document: dict[str, Any], method: str, path: str, status: int
) -> None:
    assert_problem(client.request(method, path), status, "", {"paths": {}})


@pytest.mark.parametrize("name", ["..%2fmodel.onnx", "..%2f..%2fmanifest.json", "model.onnx"])
def test_examples_give_nothing_but_examples(client: TestClient, name: str) -> None:
    assert client.get(f"/model/examples/{name}").status_code == 404


def test_unexpected_error_is_a_problem(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    app = create_app(settings)
    with TestClient(app) as client:
        engine = app.state.runtime.model.engine
        run, engine.run = engine.run, lambda *given: 1 / 0
        response = client.post("/classify", content=RED, headers=PNG)
        assert_problem(response, 500, response.headers["x-request-id"], client.get("/openapi.json").json())
        assert "ZeroDivisionError" not in response.text
        engine.run = run
        assert client.post("/classify", content=RED, headers=PNG).status_code == 200
