"""service/metrics.py as Prometheus sees it."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service import bundle
from service.metrics import score_buckets
from tests.service import tiny

PNG = {"content-type": "image/png"}


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_everything_is_counted(client: TestClient) -> None:
    client.post("/classify", content=tiny.photo((220, 30, 30)), headers=PNG)
    client.post("/classify", content=tiny.photo((10, 10, 10)), headers=PNG)
    client.post("/classify", content=b"hello", headers=PNG)
    client.get("/does/not/exist")
    client.request("BREW", "/classify")
    found = samples(client)

    def value(name: str, **labels: str) -> float:
        return found[(f"tailguard_{name}", tuple(sorted(labels.items())))]

    assert value("requests_total", route="/classify", method="POST", status="200") == 2
    assert value("requests_total", route="/classify", method="POST", status="415") == 1
    assert value("requests_total", route="unmatched", method="GET", status="404") == 1
    assert value("requests_total", route="/classify", method="other", status="405") == 1
    assert value("request_seconds_count", route="/classify") == 4
    for stage in ("decode", "queue", "inference"):
        assert value("stage_seconds_count", stage=stage) == 2
    assert value("stage_seconds_count", stage="receive") == 3
    assert (value("batch_images_count"), value("batch_images_sum"), value("queue_images")) == (2, 2, 0)
    assert value("decisions_total", **{"class": "red", "group": "many", "decision": "accept"}) == 1
    assert value("decisions_total", **{"class": "red", "group": "many", "decision": "reject"}) == 1
    assert value("decisions_total", **{"class": "blue", "group": "few", "decision": "reject"}) == 0
    assert value("score_energy_count") == value("score_msp_count") == 2
    assert value("refused_total", reason="unsupported-media") == 1
    assert {name for name, _ in found if name.endswith("_created")} == set()
    info = next(dict(labels) for name, labels in found if name == "tailguard_model_info")
    assert (info["model"], info["version"], info["provider"]) == ("tiny", "1", "CPUExecutionProvider")


def test_score_buckets_span_calibration(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    energy, msp = score_buckets(manifest, "energy"), score_buckets(manifest, "msp")
    assert (energy[0], energy[-1], len(energy)) == (-10.0, -1.5, 25)
    assert (msp[0], msp[-1]) == (0.0, 0.67)
    assert energy == sorted(set(energy))


def test_score_buckets_of_a_constant_score(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    flat = manifest.calibration.model_copy(update={"quantiles": {"msp": {"all": (0.5, 0.5, 0.5)}}})
    assert score_buckets(manifest.model_copy(update={"calibration": flat}), "msp") == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("stage", ["receive", "decode", "queue", "inference"])
def test_stages_are_in_seconds(client: TestClient, stage: str) -> None:
    client.post("/classify", content=tiny.photo(), headers=PNG)
    total = samples(client)[("tailguard_stage_seconds_sum", (("stage", stage),))]
    assert 0 < total < 1
