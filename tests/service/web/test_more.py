"""What is answered only where it is asked for: training examples, embedding, heat map; POST /embed."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.contract import exemplars
from service.ledger.reading import Reader
from service.settings import Settings
from service.web.app import create_app
from service.web.embed_schemas import EmbedAnswer
from service.web.schemas import Answer
from tests.service import tiny

RED, BLUE = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200))
DIRECTION = np.array([220, 30, 30]) / np.linalg.norm([220, 30, 30])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tiny.write_whole(tmp_path_factory.mktemp("whole") / "tiny" / "1")
    with TestClient(create_app(Settings(bundle=folder, inference_threads=1))) as client:
        yield client


def classify(client: TestClient, image: bytes = RED, **query: Any) -> Any:
    return client.post("/classify", content=image, headers={"content-type": "image/png"}, params=query)


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("files", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]


def test_nothing_more_is_answered_than_was_asked_for(whole: TestClient) -> None:
    assert not {"neighbours", "embedding", "map"} & set(classify(whole).json())
    assert not {"neighbours", "embedding", "map"} & set(classify(whole, embedding="false", map="false").json())
    assert {"neighbours", "embedding", "map"} & set(classify(whole, neighbours=1).json()) == {"neighbours"}


def test_all_of_it_at_once_fits_the_schema(whole: TestClient) -> None:
    plain, full = classify(whole).json(), classify(whole, neighbours=2, embedding="true", map="true").json()
    Answer.model_validate(full)
    assert plain["probability"] == pytest.approx(full["probability"])
    np.testing.assert_allclose(full["embedding"], DIRECTION, atol=1e-5)
    near = [(one["label"], one["exemplar"], one["distance"]) for one in full["neighbours"]]
    wanted = [1 - DIRECTION[0], 1 - DIRECTION @ [0.6, 0.8, 0]]
    assert near == [("red", 0, pytest.approx(wanted[0], abs=2e-4)), ("red", 1, pytest.approx(wanted[1], abs=2e-3))]
    heat = full["map"]
    assert (heat["width"], heat["height"], len(heat["values"])) == (8, 8, 64)
    np.testing.assert_allclose(heat["values"], tiny.GAIN / 255 * 220, rtol=1e-4)
    assert heat["box"] == {"left": 0, "top": 0, "width": 8, "height": 8}


def test_the_map_lies_over_the_part_that_the_model_saw(tmp_path: Path) -> None:
    """Of a picture of 40 x 20 a crop shows half of the square in its middle, and stretch the whole."""
    crop = {"height_px": 8, "width_px": 8, "fit": "crop", "crop_share": 0.5, "resampling": "bilinear"}
    folder = tiny.write_whole(tmp_path / "tiny" / "1", input=crop, golden=[])
    picture = tiny.photo((220, 30, 30), size=(40, 20))
    with TestClient(create_app(Settings(bundle=folder, inference_threads=1))) as client:
        box = classify(client, picture, map="true").json()["map"]["box"]
    assert box == {"left": 15, "top": 5, "width": 10, "height": 10}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"neighbours": 5}, "neighbours=5 is not valid: of this model's examples 1 to 4"),
        ({"neighbours": 0}, "greater than or equal to 1"),
        ({"neighbours": "all"}, "valid integer"),
        ({"map": "perhaps"}, "map"),
        ({"heatmap": "true"}, "heatmap"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(whole: TestClient, query: dict[str, Any], said: str) -> None:
    answer = classify(whole, **query)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"neighbours": 1}, "tiny 1 holds no training examples"),
        ({"embedding": "true"}, "tiny 1 gives no embedding"),
        ({"map": "true"}, "tiny 1 gives no heat map"),
    ],
)
def test_what_a_bundle_lacks_is_refused_in_words(client: TestClient, query: dict[str, Any], said: str) -> None:
    for answer in (classify(client, **query), client.post("/classify/batch", files=files(RED), params=query)):
        assert answer.status_code == 422
        assert said in answer.json()["detail"]


def test_why_there_is_no_map_is_said(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "tiny" / "1", evaluation={"heat_map": "a class token has seen all"})
    with TestClient(create_app(Settings(bundle=folder, inference_threads=1))) as client:
        assert (
            "no heat map (a class token has seen all): leave map out" in classify(client, map="true").json()["detail"]
        )
        assert client.get("/model").json()["heat_map"] is None


def test_pictures_of_examples_are_served_under_a_name_that_never_changes(whole: TestClient) -> None:
    near = classify(whole, neighbours=4).json()["neighbours"]
    paths = {one["exemplar"]: one["thumbnail"] for one in near}
    assert paths[1] is None
    picture = whole.get(paths[0])
    assert picture.content == tiny.photo((255, 0, 0), form="JPEG")
    assert picture.headers["content-type"] == "image/jpeg"
    assert "immutable" in picture.headers["cache-control"]
    assert "private" in picture.headers["cache-control"]  # behind a key it is nobody else's
    for name in ("0", "..%2fmanifest.json", paths[0].rpartition("/")[2][:-1]):
        answer = whole.get(f"/model/exemplars/{name}")
        assert answer.status_code == 404, name
    assert "no picture of this model's" in whole.get("/model/exemplars/none").json()["detail"]


def test_a_batch_answers_each_image_with_more(whole: TestClient) -> None:
    answer = whole.post("/classify/batch", files=files(RED, b"none", BLUE), params={"neighbours": 1, "map": "true"})
    first, second, third = answer.json()["results"]
    assert first["answer"]["neighbours"][0]["label"] == "red"
    assert second["answer"] is None
    assert third["answer"]["neighbours"][0]["label"] == "blue"
    assert third["answer"]["map"]["values"][0] == pytest.approx(tiny.GAIN / 255 * 200, abs=1e-3)


# ------------------------------------------------------------------------------------------------- POST /embed


def test_images_to_vectors(whole: TestClient) -> None:
    answer = whole.post("/embed", files=files(RED, b"none", BLUE)).json()
    EmbedAnswer.model_validate(answer)
    assert (answer["dimensions"], answer["model"]) == (3, {"name": "tiny", "version": "1"})
    first, second, third = answer["results"]
    np.testing.assert_allclose(first["embedding"], DIRECTION, atol=1e-5)
    assert (second["file"], second["embedding"], second["problem"]["status"]) == ("1.png", None, 415)
    assert np.linalg.norm(third["embedding"]) == pytest.approx(1, abs=1e-5)


def test_nothing_is_decided_of_what_is_embedded(whole: TestClient) -> None:
    classify(whole)
    counted = whole.get("/metrics").text
    whole.post("/embed", files=files(RED, RED))
    after = whole.get("/metrics").text

    def value(text: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    assert value(counted, "tailguard_decisions_total") > 0
    assert value(after, "tailguard_decisions_total") == value(counted, "tailguard_decisions_total")
    answered = 'tailguard_images_total{outcome="answered"}'
    assert value(after, answered) == value(counted, answered) + 2
    assert value(after, 'tailguard_requests_total{method="POST",route="/embed",status="200"}') >= 1


def test_the_compact_form(whole: TestClient) -> None:
    answer = whole.post("/embed", files=files(RED, BLUE), headers={"accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    rows = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.float32, (2, 3))
    np.testing.assert_allclose(rows[0], DIRECTION, atol=1e-6)
    refused = whole.post("/embed", files=files(RED, b""), headers={"accept": "application/x-npy"})
    assert refused.status_code == 422
    assert "1.png: the image is empty" in refused.json()["detail"]


def test_what_is_not_finite_is_no_number_in_an_answer(tmp_path: Path) -> None:
    """NaN is no JSON: whoever reads it strictly, as a browser does, lost the whole answer."""
    content = tiny.files() | {
        "model.onnx": tiny.graph(outputs=tiny.WITH_EMBEDDING, unit="broken"),
        "exemplars.npz": exemplars.encode(tiny.EXEMPLARS, [0, 0, 1, 2]),
    }
    said = {"file": "exemplars.npz", "count": 4, "chosen": "all there are"}
    folder = tiny.write_embedding(tmp_path / "tiny" / "1", files=content, exemplars=said)
    settings = Settings(bundle=folder, inference_threads=1, keep="all", ledger=str(tmp_path / "ledger.sqlite3"))
    pure = tiny.photo((220, 0, 0))
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        found = strict(classify(client, pure, neighbours=2, embedding="true"))
        assert (found["label"], found["embedding"], found["neighbours"]) == ("red", None, [])
        assert strict(classify(client, embedding="true"))["embedding"] is not None
        good, bad = strict(client.post("/embed", files=files(RED, pure)))["results"]
        assert (good["problem"], bad["embedding"]) == (None, None)
        assert "gives no finite embedding of this image" in bad["problem"]["detail"]
        asked = {"accept": "application/x-npy"}
        whole = client.post("/embed", files=files(RED, pure), headers=asked)  # else a row less, and all after it moved
        assert (whole.status_code, strict(whole)["type"]) == (500, "urn:tailguard:problem:engine-error")
    reader = Reader(str(tmp_path / "ledger.sqlite3"))
    assert [row.embedding is None for row in reader.kept()] == [True, False]  # one NaN would spoil every group
    reader.close()


def strict(answer: Any) -> Any:
    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(answer.content, parse_constant=refused)


def test_a_bundle_without_an_embedding_embeds_nothing(client: TestClient) -> None:
    answer = client.post("/embed", files=files(RED))
    assert (answer.status_code, "gives no embedding" in answer.json()["detail"]) == (422, True)


def test_embedding_is_for_keys_that_may_classify(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[keys.a]\nkey = "may"\nroles = ["classify"]\n[keys.b]\nkey = "not"\nroles = ["feedback"]\n')
    folder = tiny.write_whole(tmp_path / "tiny" / "1")
    with TestClient(create_app(Settings(bundle=folder, inference_threads=1, keys_file=keys))) as client:
        codes = {
            key: client.post("/embed", files=files(RED), headers={"x-api-key": key}).status_code
            for key in ("may", "not", "other")
        }
    assert codes == {"may": 200, "not": 403, "other": 401}


# ------------------------------------------------------------------------------------- the inference protocol


def infer(client: TestClient, *outputs: str) -> Any:
    pixels = np.full((1, 8, 8, 3), (220, 30, 30), np.uint8)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": pixels.ravel().tolist()}
    body = {"inputs": [tensor], "outputs": [{"name": name} for name in outputs]}
    return client.post("/v2/models/tiny/infer", json=body)


def test_the_protocol_gives_embedding_and_map_by_name_alone(whole: TestClient, client: TestClient) -> None:
    described = {one["name"]: one for one in whole.get("/v2/models/tiny").json()["outputs"]}
    assert (described["embedding"]["shape"], described["heat_map"]["shape"]) == ([-1, 3], [-1, 8, 8])
    assert described["embedding"]["parameters"] == {"only_by_name": True}
    usual = {one["name"] for one in infer(whole).json()["outputs"]}
    assert {"probabilities", "decision"} <= usual
    assert not {"embedding", "heat_map"} & usual
    label, embedding, heat = infer(whole, "label", "embedding", "heat_map").json()["outputs"]
    assert label["data"] == ["red"]
    np.testing.assert_allclose(embedding["data"], DIRECTION, atol=1e-5)
    assert (heat["shape"], len(heat["data"])) == ([1, 8, 8], 64)
    assert 'output "embedding" is none of this model\'s' in infer(client, "embedding").json()["error"]
