"""service/web/routes/model.py and the OpenAPI document: what the service says of itself is true."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.contract import bundle
from service.settings import Settings
from service.web.app import create_app
from service.web.routes import model as describe
from service.web.schemas import Answer, Problem
from tests.service import tiny

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))


def test_model_summary(client: TestClient, tiny_bundle: Path) -> None:
    summary = client.get("/model").json()
    manifest = bundle.read(tiny_bundle)
    assert (summary["sha256"], summary["classes"]) == (manifest.sha256, list(tiny.CLASSES))
    assert summary["operating_points"]["id95"]["group_thresholds"] == {"many": -5.5, "medium": -5.25, "few": -5.0}
    assert summary["operating_points"]["id95"]["group_cost"]["calibration"]["id_rejected"] == 0.05
    assert (summary["operating_point"], summary["threshold_scope"]) == ("id95", "group")
    assert summary["examples"] == ["blue.png", "red.png"]
    assert summary["deciding_score_range"] == {"low": -10.0, "high": -1.5}  # of the page's bar
    assert client.get("/model/examples/red.png").content == (tiny_bundle / "examples/red.png").read_bytes()


def test_summary_says_that_there_are_embedding_and_exemplars(tmp_path: Path, client: TestClient) -> None:
    without = client.get("/model").json()
    assert (without["embedding"], without["exemplars"]) == (None, None)
    manifest = bundle.read(tiny.write_exemplars(tmp_path / "1"))
    shown = describe.summary(manifest, "cpu", "id95", "group").model_dump(mode="json")
    assert shown["embedding"] == {"dimensions": 3, "made_from": "the mean per channel"}
    assert (shown["exemplars"]["count"], shown["exemplars"]["thumbnails"]) == (4, 0)


def test_model_classes(client: TestClient) -> None:
    answer = client.get("/model/classes").json()
    assert [(c["name"], c["group"], c["train_count"]) for c in answer["classes"]] == [
        ("red", "many", 1000), ("green", "medium", 100), ("blue", "few", 10),
    ]  # fmt: skip
    few = answer["groups"]["few"]
    assert (few["classes"], few["accuracy"], few["calibration_id_rejected"]) == (1, pytest.approx(0.7), 0.06)
    assert few["calibration_outliers_caught"] is None


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_bar_of_the_page_spans_what_calibration_saw(client: TestClient) -> None:
    function = re.search(r"^function placeOf.*?^}", client.get("/").text, re.MULTILINE | re.DOTALL)
    assert function is not None
    values = "[0, 0.15, 0.3, 0.65, 1, 2, null]"  # a score within 0 and 1, as MSP is
    model = "let model = {deciding_score_range: {low: 0, high: 1}}"
    code = f"{model}; {function[0]}; console.log({values}.map(v => placeOf(v, 0.3)).join())"
    shown = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    assert [round(float(place)) for place in shown.split(",")] == [0, 25, 50, 75, 100, 100, 100]


def test_page_is_self_contained(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text
    assert '<html lang="en">' in response.text


def test_openapi_describes_both_forms_and_every_error(document: dict[str, Any]) -> None:
    content = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["required"] == ["file"]
    assert "image/jpeg" in content
    assert {p["name"] for p in document["paths"]["/classify"]["post"]["parameters"]} == {
        "top_k", "operating_point", "thresholds", "set", "neighbours", "embedding", "map", "X-Request-Timeout-Ms",
        "Content-Encoding",
    }  # fmt: skip
    for path, methods in document["paths"].items():
        if path.startswith("/v2"):
            continue  # another protocol with errors of another shape: test_oip.py
        for method, operation in methods.items():
            assert "500" in operation["responses"], (path, method)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    for slug, example in response["content"]["application/problem+json"]["examples"].items():
                        problem = Problem.model_validate(example["value"], extra="forbid")
                        assert (problem.status, problem.type.split(":")[-1]) == (int(status), slug)
    Answer.model_validate(document["components"]["schemas"]["Answer"]["examples"][0], extra="forbid")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert "Problem" in document["components"]["schemas"]


def test_several_applications_in_one_process(settings: Settings) -> None:
    with (
        TestClient(create_app(settings)) as one,
        TestClient(create_app(settings)) as two,
    ):
        one.post("/classify", content=RED, headers=PNG)
        point = 'operating_point="id95",scope="group"'
        labels = f'class="red",decision="accept",group="many",model="tiny",{point},version="1"'
        line = f"tailguard_decisions_total{{{labels}}}"
        assert f"{line} 1.0" in one.get("/metrics").text
        assert f"{line} 0.0" in two.get("/metrics").text
