"""What the service keeps of the images that it answers, and DELETE /requests/{id}, through a real server."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.ledger.reading import DecidedRow, Reader
from service.ledger.store import key_of, store_at
from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny
from tests.service.asgi import assert_problem
from tests.service.ledger.test_ledger import read
from tests.service.test_process import serving

RED, BLUE, GREY = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200)), tiny.photo((10, 10, 10))
PNG = {"content-type": "image/png"}
LIMIT_S = 30


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedding(tmp_path_factory.mktemp("models") / "tiny" / "1")


def rows(where: Path, count: int) -> list[DecidedRow]:
    """The kept rows, once there are so many with their files in the store."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        reader = Reader(str(where))
        kept = reader.kept()
        stored = [
            row.image_key is None or store_at(f"{where}.images").thumbnail(row.image_key) is not None for row in kept
        ]
        reader.close()
        if len(kept) == count and all(stored):
            return kept
        assert time.monotonic() < deadline, kept
        time.sleep(0.05)


@pytest.fixture
def server(embedding_bundle: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    keys = {"API_KEYS": "ci=k3y,other=oth3r", "ADMIN_KEYS": "ops=r00t"}
    ledger = str(tmp_path / "ledger")
    with (
        serving(BUNDLE=str(embedding_bundle), LEDGER=ledger, KEEP="rejected", **keys) as (_, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, headers={"x-api-key": "k3y"}) as client,
    ):
        yield client


def test_refused_images_are_kept_and_forgotten(server: httpx.Client, tmp_path: Path) -> None:
    where, files = (
        tmp_path / "ledger",
        [("files", (name, data, "image/png")) for name, data in (("r", RED), ("g", GREY))],
    )
    server.post("/classify", content=RED, headers=PNG).raise_for_status()
    sent = server.post("/classify/batch", files=files).raise_for_status().json()
    assert [item["answer"]["decision"] for item in sent["results"]] == ["accept", "reject"]
    content = base64.b64encode(GREY).decode()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [content]}
    server.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).raise_for_status()
    pixels = {"name": "images", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [10] * 192}
    server.post("/v2/models/tiny/infer", json={"inputs": [pixels]}).raise_for_status()  # refused, but no file
    batch, protocol = rows(where, 2)
    assert (batch.request_id, batch.position, batch.image_key) == (sent["request_id"], 1, key_of(GREY))
    assert (batch.keep_probability, batch.sampled, protocol.image_key) == (1.0, False, key_of(GREY))
    assert batch.embedding is not None
    np.testing.assert_allclose(batch.embedding, np.full(3, 3**-0.5), atol=1e-3)
    assert store_at(f"{where}.images").get(key_of(GREY)) == GREY

    path = f"/requests/{sent['request_id']}"
    document = server.get("/openapi.json").json()
    refused = server.delete(path, headers={"x-api-key": "oth3r"})
    assert_problem(refused, 403, "was sent with another API key", document)
    assert server.delete(path, headers={"x-api-key": "wrong"}).status_code == 401
    assert_problem(server.delete("/requests/none"), 404, "nothing of it is kept", document)
    for _ in range(2):
        assert server.delete(path).json() == {"request_id": sent["request_id"], "images": 2}
    (left,) = rows(where, 1)
    assert left.request_id == protocol.request_id
    assert store_at(f"{where}.images").get(key_of(GREY)) == GREY  # the other request's
    assert server.delete(f"/requests/{left.request_id}", headers={"x-api-key": "r00t"}).status_code == 200
    rows(where, 0)
    deadline = time.monotonic() + LIMIT_S
    while any((tmp_path / "ledger.images").rglob(f"{key_of(GREY)}*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    metrics = server.get("/metrics").text
    assert 'tailguard_store_images_total{outcome="kept"} 2.0' in metrics
    tallied = read(str(where), "SELECT sum(images) FROM tallies WHERE decision = 'reject'")
    assert tallied == [(3,)]  # the deletion has taken nothing out of the counts


def test_nothing_is_kept_unless_asked_for(client: TestClient, tmp_path: Path) -> None:
    client.post("/classify", content=GREY, headers=PNG).raise_for_status()
    ledger = client.app.state.runtime.ledger  # type: ignore[attr-defined]
    assert ledger.store is ledger.policy is None
    found = client.post("/classify", content=GREY, headers=PNG | {"x-request-id": "mine"}).json()
    assert client.delete(f"/requests/{found['request_id']}").json()["images"] == 1
    assert client.delete("/requests/mine").status_code == 200


def test_a_ledger_that_is_off_knows_no_request(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"ledger": "off"}))) as client:
        assert client.delete("/requests/a").status_code == 404


@pytest.mark.parametrize("broken", ["file", "nothing"])
def test_a_store_that_cannot_be_written_fails_no_classification(
    embedding_bundle: Path, settings: Settings, tmp_path: Path, broken: str
) -> None:
    changes: dict[str, Any] = {"bundle": embedding_bundle, "ledger": str(tmp_path / "ledger"), "keep": "all"}
    with TestClient(create_app(settings.model_copy(update=changes))) as client:
        if broken == "file":
            (tmp_path / "ledger.images").write_bytes(b"")  # in the place of the folder
        answers = [client.post("/classify", content=image, headers=PNG) for image in (RED, BLUE, GREY)]
        assert [answer.status_code for answer in answers] == [200] * 3
        outcome = "failed" if broken == "file" else "kept"
        deadline = time.monotonic() + LIMIT_S
        while f'tailguard_store_images_total{{outcome="{outcome}"}} 3.0' not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    kept = rows(tmp_path / "ledger", 3)  # after the end, so that what the store has done is noted
    assert [row.request_id for row in kept] == [answer.json()["request_id"] for answer in answers]
    assert [row.image_key is None for row in kept] == [broken == "file"] * 3
