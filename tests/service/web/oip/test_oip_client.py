"""The Open Inference Protocol as Triton's own client speaks it, against a real server process."""

import asyncio
import base64
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service import tiny
from tests.service.test_process import serving

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient[http] is not installed")

COLOURS = ((220, 30, 30), (10, 20, 200), (90, 100, 80))
PHOTOS = [tiny.photo(colour) for colour in COLOURS]
PIXELS = np.stack([np.full((tiny.SIDE, tiny.SIDE, 3), colour, np.uint8) for colour in COLOURS])
NAMES = ["energy", "msp", "probabilities", "class_index", "label", "decision", "threshold", "p_value"]


@pytest.fixture(scope="module")
def address(tiny_bundle: Path) -> Iterator[str]:
    with serving(BUNDLE=str(tiny_bundle), MAX_BODY_BYTES="100000") as (_, port):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(address: str) -> dict[str, np.ndarray[Any, Any]]:
    """What POST /classify says of the photos, as tensors."""
    answers = [
        httpx.post(f"http://{address}/classify", content=photo, headers={"content-type": "image/png"}).json()
        for photo in PHOTOS
    ]
    probabilities = [{c["class_index"]: c["probability"] for c in a["top_k"]} for a in answers]
    return {
        "energy": np.array([a["scores"]["energy"] for a in answers], np.float32),
        "msp": np.array([a["scores"]["msp"] for a in answers], np.float32),
        "probabilities": np.array([[p[i] for i in range(3)] for p in probabilities], np.float32),
        "class_index": np.array([a["class_index"] for a in answers]),
        "label": np.array([a["label"].encode() for a in answers], object),
        "decision": np.array([a["decision"].encode() for a in answers], object),
        "threshold": np.array([a["deciding_score"]["threshold"] for a in answers]),
        "p_value": np.array([a["p_value"] for a in answers]),
    }


def images(binary: bool, pixels: np.ndarray[Any, Any] = PIXELS) -> Any:
    tensor = triton.InferInput("images", list(pixels.shape), "UINT8")
    return tensor.set_data_from_numpy(pixels, binary_data=binary)


def files(binary: bool, shape: tuple[int, ...] = (3,), photos: list[bytes] = PHOTOS) -> Any:
    content = photos if binary else [base64.b64encode(photo) for photo in photos]
    tensor = triton.InferInput("image", list(shape), "BYTES")
    return tensor.set_data_from_numpy(np.array(content, object).reshape(shape), binary_data=binary)


def assert_same(result: Any, expected: dict[str, np.ndarray[Any, Any]], names: list[str] = NAMES) -> None:
    response = result.get_response()
    assert [output["name"] for output in response["outputs"]] == names
    assert (response["model_name"], response["model_version"]) == ("tiny", "1")
    for name in names:
        found = result.as_numpy(name)
        if found.dtype == object:  # BYTES in JSON come as str
            found = np.array([v.encode() if isinstance(v, str) else v for v in found], object)
        assert found.dtype == expected[name].dtype
        np.testing.assert_array_equal(found, expected[name], strict=True)


def test_expected_is_what_the_graph_computes(expected: dict[str, Any]) -> None:
    probabilities, scores = tiny.reference(PIXELS)
    np.testing.assert_allclose(expected["probabilities"], probabilities, rtol=1e-5)
    np.testing.assert_allclose(expected["energy"], scores["energy"], rtol=1e-5)
    assert expected["label"].tolist() == [b"red", b"blue", b"green"]
    assert expected["decision"].tolist() == [b"accept", b"accept", b"reject"]


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize(
    "tensor",
    [images(True), images(False), files(True), files(False), files(True, (3, 1)), files(False, (3, 1))],
    ids=["pixels-binary", "pixels-json", "files-binary", "files-json", "files-binary-column", "files-json-column"],
)
def test_every_encoding_says_what_classify_says(
    client: Any, expected: dict[str, Any], tensor: Any, binary_out: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in NAMES]
    assert_same(client.infer("tiny", [tensor]), expected)  # all of them, in binary
    assert_same(client.infer("tiny", [tensor], outputs=outputs, model_version="1"), expected)


def test_requested_outputs_and_id(client: Any, expected: dict[str, Any]) -> None:
    names = ["decision", "energy"]
    outputs = [triton.InferRequestedOutput("decision", binary_data=True), triton.InferRequestedOutput("energy", False)]
    result = client.infer("tiny", [files(True)], outputs=outputs, request_id="my 1é")
    assert_same(result, expected, names)
    response = result.get_response()
    assert response["id"] == "my 1é"
    assert response["parameters"] == {"operating_point": "id95", "thresholds": "group", "deciding_score": "energy"}
    assert response["outputs"][0]["parameters"] == {"binary_data_size": 3 * (4 + 6)}
    assert response["outputs"][1]["data"] == [float(v) for v in expected["energy"]]


def test_operating_point_and_thresholds(client: Any) -> None:
    wishes = {"operating_point": "ood95", "thresholds": "global"}
    result = client.infer("tiny", [images(True)], parameters=wishes)
    assert result.as_numpy("threshold").tolist() == [tiny.THRESHOLD["ood95"]] * 3
    assert result.get_response()["parameters"] == wishes | {"deciding_score": "energy"}


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, expected: dict[str, Any], algorithm: str) -> None:
    result = client.infer(
        "tiny", [files(True)], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert_same(result, expected)


def test_sync_client_side_by_side(client: Any, expected: dict[str, Any]) -> None:
    waiting = [client.async_infer("tiny", [images(True) if i % 2 else files(True)]) for i in range(6)]
    for one in waiting:
        assert_same(one.get_result(), expected)


def test_asyncio_client(address: str, expected: dict[str, Any]) -> None:
    async def ask() -> None:
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("tiny", "1")
            assert (await client.get_model_metadata("tiny"))["name"] == "tiny"
            for result in await asyncio.gather(*(client.infer("tiny", [t]) for t in (images(True), files(False)))):
                assert_same(result, expected)
            with pytest.raises(triton.InferenceServerException, match="none of this model's"):
                await client.infer("tiny", [triton.InferInput("x", [1], "BYTES").set_data_from_numpy(np.array([b""]))])

    asyncio.run(ask())


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert (server["name"], server["extensions"]) == ("tailguard", ["binary_tensor_data"])
    model = client.get_model_metadata("tiny", "1")
    assert model == client.get_model_metadata("tiny")
    assert (model["name"], model["versions"], model["platform"]) == ("tiny", ["1"], "onnxruntime_onnx")
    shapes = [(t["name"], t["datatype"], t["shape"]) for t in model["inputs"]]
    assert shapes == [("images", "UINT8", [-1, 8, 8, 3]), ("image", "BYTES", [-1])]
    assert {t["parameters"]["exactly_one_of"] for t in model["inputs"]} == {"images,image"}
    result = client.infer("tiny", [images(True)])
    for described in model["outputs"]:
        sent = result.get_output(described["name"])
        assert (sent["datatype"], sent["shape"][1:]) == (described["datatype"], described["shape"][1:])


def test_the_protocols_errors(client: Any) -> None:
    one = PIXELS[:1]
    floats = triton.InferInput("images", [1, 8, 8, 3], "FP32").set_data_from_numpy(one.astype(np.float32))
    class_count = triton.InferRequestedOutput("probabilities", class_count=2)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("404", "model 'other' is not served", {"model_name": "other", "inputs": [images(True)]}),
        ("404", "model 'tiny version 7' is", {"model_name": "tiny", "model_version": "7", "inputs": [images(True)]}),
        ("400", r"has shape \[1,8,8,2\], the model takes \[N, 8, 8, 3\]", {"inputs": [images(True, one[..., :2])]}),
        ("400", r"has shape \[8,8,3\]", {"inputs": [images(False, one[0])]}),
        ("400", r'datatype "FP32", the model takes UINT8', {"inputs": [floats]}),
        ("400", r"N from 1 to 64", {"inputs": [images(True, np.zeros((65, 8, 8, 3), np.uint8))]}),
        ("400", r"N from 1 to 64", {"inputs": [images(True, one[:0])]}),
        ("400", "a list of one tensor", {"inputs": [images(True), files(True)]}),
        ("400", r"image\[1\]: the image is damaged", {"inputs": [files(True, (2,), [PHOTOS[0], PHOTOS[1][:50]])]}),
        ("400", r"image\[0\]: the content is no image", {"inputs": [files(True, (1,), [b"x" * 50])]}),
        ("400", "operating_point=id99", {"inputs": [images(True)], "parameters": {"operating_point": "id99"}}),
        ("400", 'thresholds is "all"', {"inputs": [images(True)], "parameters": {"thresholds": "all"}}),
        ("400", "none of this model's: energy, msp", {
            "inputs": [images(True)], "outputs": [triton.InferRequestedOutput("logits")],
        }),
        ("400", "classification", {"inputs": [images(True)], "outputs": [class_count]}),
        ("413", "limit is 100000", {"inputs": [files(True, (1,), [bytes(200_000)])]}),
    ]  # fmt: skip
    for status, words, sent in cases:
        with pytest.raises(triton.InferenceServerException, match=words) as caught:
            client.infer(**{"model_name": "tiny"} | sent)
        assert caught.value.status() == status
    for call in (client.get_model_config, client.get_inference_statistics, client.load_model):
        with pytest.raises(triton.InferenceServerException, match="is not served here") as caught:
            call("tiny")
        assert caught.value.status() == "404"
    assert client.infer("tiny", [images(True)]).as_numpy("label").tolist() == [b"red", b"blue", b"green"]


def test_bombs_are_refused(address: str) -> None:
    url = f"http://{address}/v2/models/tiny/infer"
    bomb = b"[" * 50_000_000
    packers = {"gzip": zlib.compressobj(9, zlib.DEFLATED, 31), "deflate": zlib.compressobj(9)}
    for encoding, packer in packers.items():
        packed = packer.compress(bomb) + packer.flush()
        assert len(packed) < 100_000
        response = httpx.post(url, content=packed, headers={"content-encoding": encoding})
        assert response.status_code == 413
        assert response.json() == {"error": "the body unpacks to more than 100000 bytes, the limit: send a smaller one"}
