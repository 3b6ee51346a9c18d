"""service/web/oip/routes.py in one process: the protocol's bodies by hand, its errors, and its bounds."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from service.web.oip.request import MAX_JSON_VALUES
from service.web.oip.schemas import InferError, InferResponse, ModelMetadata
from tests.service import tiny

INFER = "/v2/models/tiny/infer"
RED, BLUE = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200))
PIXELS = np.stack([np.full((8, 8, 3), c, np.uint8) for c in ((220, 30, 30), (10, 20, 200))])
TEXTS = [base64.b64encode(photo).decode() for photo in (RED, BLUE)]
LENGTH_HEADER = "inference-header-content-length"
BYTES = {"name": "image", "shape": [2], "datatype": "BYTES", "data": TEXTS}
UINT8 = {"name": "images", "shape": [2, 8, 8, 3], "datatype": "UINT8", "data": PIXELS.ravel().tolist()}


@pytest.fixture(scope="module")
def oip(tiny_bundle: Path) -> Iterator[TestClient]:
    chosen = Settings(bundle=tiny_bundle, inference_threads=1, max_body_bytes=4_000_000, queue_images=5)
    with TestClient(create_app(chosen)) as started:
        yield started


def ask(client: TestClient, tensor: dict[str, Any], **more: Any) -> Any:
    return client.post(INFER, json={"inputs": [tensor], **more})


def binary(document: Any, tail: bytes, length: int | str | None = None) -> dict[str, Any]:
    """A request of the binary extension for httpx."""
    text = json.dumps(document).encode()
    return {"content": text + tail, "headers": {LENGTH_HEADER: str(len(text) if length is None else length)}}


def tensor(of: dict[str, Any], size: int, **changes: Any) -> dict[str, Any]:
    """`of` with its data after the JSON."""
    return {k: v for k, v in of.items() if k != "data"} | {"parameters": {"binary_data_size": size}} | changes


def elements(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def columns(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    InferResponse.model_validate(response.json(), extra="forbid")
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def assert_refused(response: Any, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert words in InferError.model_validate(response.json(), extra="forbid").error


@pytest.mark.parametrize(
    "sent",
    [
        UINT8,
        UINT8 | {"data": PIXELS.tolist()},
        BYTES,
        BYTES | {"parameters": {"content_type": "base64"}},
        BYTES | {"shape": [2, 1]},
        BYTES | {"shape": [2, 1], "data": [[text] for text in TEXTS]},
    ],
    ids=["flat", "nested", "base64", "content-type", "column-flat", "column-nested"],
)
def test_json_says_what_classify_says(oip: TestClient, sent: dict[str, Any]) -> None:
    found = columns(ask(oip, sent))
    for i, photo in enumerate((RED, BLUE)):
        answer = oip.post("/classify", content=photo, headers={"content-type": "image/png"}).json()
        probabilities = {c["class_index"]: c["probability"] for c in answer["top_k"]}
        assert found["probabilities"][3 * i : 3 * i + 3] == [probabilities[j] for j in range(3)]
        assert {name: found[name][i] for name in answer["scores"]} == answer["scores"]
        assert found["threshold"][i] == answer["deciding_score"]["threshold"]
        assert all(found[name][i] == answer[name] for name in ("label", "class_index", "decision", "p_value"))


def test_head_of_an_answer(oip: TestClient) -> None:
    others = {"priority": 1, "sequence_id": 4, "sequence_start": True, "timeout": 5}  # what tritonclient has names for
    asked = {"operating_point": "ood95", **others}
    response = ask(oip, BYTES, id="7", outputs=[{"name": "label"}], parameters=asked).json()
    assert response == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "7",
        "parameters": {"operating_point": "ood95", "thresholds": "group", "deciding_score": "energy"},
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]}],
    }
    assert "id" not in ask(oip, BYTES).json()


def test_binary_answer_byte_by_byte(oip: TestClient) -> None:
    outputs = [{"name": "label"}, {"name": "class_index"}, {"name": "p_value", "parameters": {"binary_data": False}}]
    response = ask(oip, BYTES, outputs=outputs, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH_HEADER])
    described = json.loads(response.content[:length])["outputs"]
    assert response.content[length:] == b"\3\0\0\0red\4\0\0\0blue" + struct.pack("<qq", 0, 2)
    assert [output.get("parameters") for output in described] == [
        {"binary_data_size": 15}, {"binary_data_size": 16}, None,
    ]  # fmt: skip
    assert len(described[2]["data"]) == 2


def test_binary_requests(oip: TestClient) -> None:
    expected = columns(ask(oip, UINT8))
    pixels = binary({"inputs": [tensor(UINT8, PIXELS.size)]}, PIXELS.tobytes())
    assert columns(oip.post(INFER, **pixels)) == expected
    content = elements(RED, BLUE)
    assert columns(oip.post(INFER, **binary({"inputs": [tensor(BYTES, len(content))]}, content))) == expected
    for pack, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):
        headers = pixels["headers"] | {"content-encoding": encoding}
        assert columns(oip.post(INFER, content=pack(pixels["content"]), headers=headers)) == expected


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"inputs": [NaN]}', "not JSON"),
        # The last one decided, and nothing said so
        (b'{"inputs": [], "parameters": {"thresholds": "group", "thresholds": 1}}', "'thresholds' is named twice"),
        (b"[" * 3000, "recursion limit"),
        ({}, "a list of one tensor"),
        ({"inputs": []}, "a list of one tensor"),
        ({"inputs": ["image"]}, "a list of one tensor"),
        ({"inputs": [BYTES], "id": 7}, "id is 7"),
        ({"inputs": [BYTES], "parameters": [1]}, "parameters of the request are [1]"),
        ({"inputs": [BYTES], "parameters": {"binary_data_output": "yes"}}, 'binary_data_output is "yes"'),
        ({"inputs": [BYTES], "parameters": {"operating_point": 7}}, "operating_point is 7"),
        ({"inputs": [BYTES], "parameters": {"operating_point": "id99"}}, "none of this model's: id95, ood95"),
        # Decided by the group's thresholds, where the global one was asked for
        ({"inputs": [BYTES], "parameters": {"threshold": "global"}}, "threshold is not known here: did you"),
        ({"inputs": [BYTES], "parameters": {"Operating-Point": "ood95"}}, "did you mean operating_point"),
        # Decided at the default point, where another was asked for at a place that nobody read
        ({"inputs": [BYTES], "operating_point": "ood95"}, "operating_point stands beside the parameters: send it in"),
        ({"inputs": [BYTES], "parameter": {"operating_point": "ood95"}}, "did you mean parameters"),
        ({"inputs": [BYTES | {"parameters": {"thresholds": "global"}}]}, "thresholds stands in the parameters of"),
        ({"inputs": [BYTES], "outputs": [{"name": "label", "parameters": {"set": 0.9}}]}, "set stands in the"),
        ({"inputs": [BYTES], "outputs": 7}, "outputs must be a list"),
        ({"inputs": [BYTES], "outputs": [{"name": ["label"]}]}, 'output ["label"] is none'),
        # The second one's binary_data held, and one tensor came for two
        ({"inputs": [BYTES], "outputs": [{"name": "label"}] * 2}, "output label is asked for twice"),
        ({"inputs": [BYTES | {"name": "input"}]}, 'input "input" is none of this model\'s'),
        ({"inputs": [BYTES | {"datatype": "UINT8"}]}, 'datatype "UINT8", the model takes BYTES'),
        ({"inputs": [UINT8 | {"datatype": None}]}, "datatype null, the model takes UINT8"),
        ({"inputs": [BYTES | {"shape": None}]}, "has shape null"),
        ({"inputs": [BYTES | {"shape": []}]}, "has shape []"),
        ({"inputs": [BYTES | {"shape": [2.0]}]}, "has shape [2.0]"),
        ({"inputs": [BYTES | {"shape": [True]}]}, "has shape [true]"),
        ({"inputs": [BYTES | {"shape": [-1]}]}, "has shape [-1]"),
        ({"inputs": [BYTES | {"shape": [0], "data": []}]}, "N from 1 to 5"),
        ({"inputs": [BYTES | {"shape": [6], "data": TEXTS * 3}]}, "N from 1 to 5"),
        ({"inputs": [BYTES | {"shape": [3]}]}, "send 3 elements"),
        ({"inputs": [BYTES | {"data": [TEXTS]}]}, "send 2 elements"),
        ({"inputs": [BYTES | {"data": "text"}]}, "neither data, a list, nor"),
        ({"inputs": [BYTES | {"data": [TEXTS[0], "é"]}]}, "image[1] is not base64"),
        ({"inputs": [BYTES | {"data": [TEXTS[0], 7]}]}, "image[1] is not base64"),
        ({"inputs": [BYTES | {"data": [TEXTS[0], ""]}]}, "image[1]: the image is empty"),
        ({"inputs": [BYTES | {"parameters": {"content_type": "str"}}]}, 'content_type "str" is not supported'),
        ({"inputs": [BYTES | {"parameters": {"binary_data_size": 3}}]}, "0 bytes follow the JSON"),
        ({"inputs": [UINT8 | {"parameters": {"shared_memory_region": "r"}}]}, "shares no memory"),
        ({"inputs": [UINT8 | {"data": [0.0] * PIXELS.size}]}, "integers from 0 to 255"),
        ({"inputs": [UINT8 | {"data": [256] * PIXELS.size}]}, "integers from 0 to 255"),
        ({"inputs": [UINT8 | {"data": [-1] * PIXELS.size}]}, "integers from 0 to 255"),
        ({"inputs": [UINT8 | {"data": [10**99] * PIXELS.size}]}, "integers from 0 to 255"),
        ({"inputs": [UINT8 | {"data": PIXELS.transpose(0, 3, 1, 2).tolist()}]}, "send 384 elements"),
        ({"inputs": [UINT8 | {"data": [*PIXELS[0].tolist(), 7]}]}, "send 384 elements"),
        ({"inputs": [UINT8 | {"data": [0] * (MAX_JSON_VALUES + 1)}]}, "send the tensor as binary data"),
        (b"[" + b"[]," * (MAX_JSON_VALUES // 5) + b"0]", "send the tensor as binary data"),
        (b"[" + b"{}," * (MAX_JSON_VALUES // 64) + b"0]", "send the tensor as binary data"),
    ],
)  # fmt: skip
def test_bad_json(oip: TestClient, sent: Any, words: str) -> None:
    content = sent if isinstance(sent, bytes) else json.dumps(sent)
    assert_refused(oip.post(INFER, content=content), 400, words)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (binary({"inputs": [tensor(UINT8, 383)]}, bytes(383)), "has 383 bytes of data, its shape [2,8,8,3] takes 384"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(383)), "383 bytes follow the JSON"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(385)), "385 bytes follow the JSON"),
        (binary({"inputs": [UINT8]}, bytes(3)), "has no binary_data_size"),
        (binary({"inputs": [tensor(UINT8, 384, data=[])]}, bytes(384)), "and data left out"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(384), "x"), "=x is not valid"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(384), 10**9), "is not valid"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(384), 10**13), "is not valid"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(384), "-1"), "is not valid"),
        (binary({"inputs": [tensor(UINT8, 384)]}, bytes(384), 3), "not JSON"),
        (binary({"inputs": [tensor(BYTES, 0)]}, b""), "are not 2 elements"),
        (binary({"inputs": [tensor(BYTES, 3)]}, bytes(3)), "are not 2 elements"),
        (binary({"inputs": [tensor(BYTES, 12)]}, bytes(12)), "are not 2 elements"),
        (binary({"inputs": [tensor(BYTES, 12)]}, elements(b"") + b"\5\0\0\0abcd"), "are not 2 elements"),
        (binary({"inputs": [tensor(BYTES, 8)]}, b"\0\0\0\0" + b"\xff" * 4), "are not 2 elements"),
        (binary({"inputs": [tensor(BYTES, 8)]}, bytes(8)), "image[0]: the image is empty"),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, "no gzip"),
        ({"content": gzip.compress(b"{}")[:-3], "headers": {"content-encoding": "gzip"}}, "cut short"),
        ({"content": gzip.compress(b"{}") * 2, "headers": {"content-encoding": "gzip"}}, "after its end"),
        ({"content": b"{}", "headers": {"x-request-timeout-ms": "soon"}}, "X-Request-Timeout-Ms=soon"),
    ],
)
def test_bad_bodies(oip: TestClient, sent: dict[str, Any], words: str) -> None:
    assert_refused(oip.post(INFER, **sent), 400, words)


def test_a_large_body_is_read_beside_the_loop(tiny_bundle: Path) -> None:
    side = 384
    chosen = Settings(bundle=tiny_bundle, inference_threads=1)
    picture = tiny.photo((10, 20, 200), (side, side), "BMP")  # 442,422 bytes
    content = elements(RED, picture)
    sent = [
        {"json": {"inputs": [BYTES | {"data": [TEXTS[0], base64.b64encode(picture).decode()]}]}},
        binary({"inputs": [tensor(BYTES, len(content))]}, content),
    ]
    with TestClient(create_app(chosen)) as client:
        for each in sent:
            assert columns(client.post(INFER, **each))["label"] == ["red", "blue"]
        damaged = binary({"inputs": [tensor(BYTES, len(content))]}, content[:-1])
        assert_refused(client.post(INFER, **damaged), 400, "bytes follow the JSON")


def test_limits_of_a_body(oip: TestClient) -> None:
    assert_refused(oip.post(INFER, content=bytes(4_000_001)), 413, "the limit is 4000000")
    headers = {"content-encoding": "gzip"}
    assert_refused(oip.post(INFER, content=gzip.compress(bytes(4_000_001)), headers=headers), 413, "unpacks to more")
    assert_refused(oip.post(INFER, content=gzip.compress(bytes(4_000_000)), headers=headers), 400, "not JSON")
    assert_refused(oip.post(INFER, content=b"{}", headers={"content-encoding": "br"}), 415, "br is not supported")


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v2/models/other/infer", 404, "model 'other' is not served here: this server has tiny version 1"),
        ("POST", "/v2/models/tiny/versions/2/infer", 404, "model 'tiny version 2' is not served here"),
        ("GET", "/v2/models/other", 404, "model 'other'"),
        ("GET", "/v2/models/tiny/versions/2/ready", 404, "model 'tiny version 2'"),
        ("GET", "/v2/models/tiny/config", 404, "not served here"),
        ("POST", "/v2/repository/index", 404, "not served here"),
        ("GET", INFER, 405, "not served here"),
        ("DELETE", "/v2", 405, "not served here"),
    ],
)
def test_unknown_paths_and_models(oip: TestClient, method: str, path: str, status: int, words: str) -> None:
    assert_refused(oip.request(method, path), status, words)


def test_health_metadata_and_versions(oip: TestClient) -> None:
    assert oip.get("/v2/health/live").json() == {"live": True}
    assert oip.get("/v2/health/ready").json() == {"live": True, "ready": True}
    for path in ("/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        assert oip.get(path).json() == {"name": "tiny", "ready": True}
    described = ModelMetadata.model_validate(oip.get("/v2/models/tiny/versions/1").json(), extra="forbid")
    assert [(t.name, t.datatype, t.shape) for t in described.outputs] == [
        ("energy", "FP32", [-1]), ("msp", "FP32", [-1]), ("probabilities", "FP32", [-1, 3]),
        ("class_index", "INT64", [-1]), ("label", "BYTES", [-1]), ("decision", "BYTES", [-1]),
        ("threshold", "FP64", [-1]), ("p_value", "FP64", [-1]),
    ]  # fmt: skip
    assert described.parameters["operating_points"] == "id95,ood95"
    assert columns(oip.post("/v2/models/tiny/versions/1/infer", json={"inputs": [BYTES]}))["label"] == ["red", "blue"]


def test_a_score_that_is_no_number_is_null_in_json_and_rejected(oip: TestClient, monkeypatch: Any) -> None:
    engine = oip.app.state.runtime.model.engine  # type: ignore[attr-defined]
    run = engine.run

    def broken(*given: Any) -> Any:
        outputs = run(*given)
        outputs.scores["energy"] = outputs.scores["energy"] * np.float32("nan")
        return outputs

    monkeypatch.setattr(engine, "run", broken)
    found = columns(ask(oip, BYTES))
    assert found["energy"] == [None, None]
    assert found["decision"] == ["reject", "reject"]
