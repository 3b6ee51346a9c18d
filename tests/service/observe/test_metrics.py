"""service/observe/metrics.py as Prometheus sees it."""

from itertools import pairwise
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.contract import bundle
from service.contract.decision import decide
from service.observe.metrics import IMAGE_OUTCOMES, Metrics
from service.observe.model_metrics import ModelMetrics, deciding_bounds, score_bounds
from tests.service import tiny

PNG = {"content-type": "image/png"}
OURS = {"model": "tiny", "version": "1"}
OF_THE_MODEL = ("decisions", "score", "deciding_score", "p_value")


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def decided(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], **labels: str) -> float:
    """The sum of tailguard_decisions_total over the series that have these labels; at least one must exist."""
    wanted = {(name.rstrip("_"), value) for name, value in labels.items()}
    series = [v for (name, have), v in found.items() if name == "tailguard_decisions_total" and wanted <= set(have)]
    assert series, labels
    return sum(series)


def test_everything_is_counted(client: TestClient) -> None:
    client.post("/classify", content=tiny.photo((220, 30, 30)), headers=PNG)
    client.post("/classify", content=tiny.photo((10, 10, 10)), headers=PNG)
    client.post("/classify", content=b"hello", headers=PNG)
    client.get("/does/not/exist")
    client.request("BREW", "/classify")
    found = samples(client)

    def value(name: str, **labels: str) -> float:
        ours = OURS if name.startswith(OF_THE_MODEL) else {}
        return found[(f"tailguard_{name}", tuple(sorted((ours | labels).items())))]

    assert value("requests_total", route="/classify", method="POST", status="200") == 2
    assert value("requests_total", route="/classify", method="POST", status="415") == 1
    assert value("requests_total", route="unmatched", method="GET", status="404") == 1
    assert value("requests_total", route="/classify", method="other", status="405") == 1
    assert value("request_seconds_count", route="/classify") == 4
    for stage in ("decode", "queue", "inference", "respond"):
        assert value("stage_seconds_count", stage=stage) == 2
    assert value("stage_seconds_count", stage="receive") == 3
    assert (value("batch_images_count"), value("batch_images_sum"), value("queue_images")) == (2, 2, 0)
    assert decided(found, class_="red", decision="accept") == decided(found, class_="red", decision="reject") == 1
    assert decided(found, class_="blue") == 0
    assert value("score_count", score="energy") == value("score_count", score="msp") == 2
    assert value("deciding_score_count", group="many") == 2
    assert value("deciding_score_count", group="few") == 0
    assert value("p_value_count") == 2
    assert value("p_value_bucket", le="0.05") == 1  # the grey one; red is as unremarkable as can be
    assert value("p_value_bucket", le="1.0") == 2
    assert (value("ready"), value("requests_in_flight"), value("queue_limit_images")) == (1, 1, 64)
    assert value("provider_asked_info", provider="CPUExecutionProvider") == 1
    assert value("refused_total", reason="overloaded") == 0
    assert value("refused_total", reason="unsupported-media") == 1
    assert {name for name, _ in found if name.endswith("_created")} == set()
    info = next(dict(labels) for name, labels in found if name == "tailguard_model_info")
    assert (info["model"], info["version"], info["provider"]) == ("tiny", "1", "CPUExecutionProvider")
    assert (info["operating_point"], info["scope"]) == ("id95", "group")


def test_what_calibration_promises_is_published(client: TestClient) -> None:
    found = samples(client)

    def value(name: str, **labels: str) -> float:
        return found[(f"tailguard_{name}", tuple(sorted((OURS | labels).items())))]

    assert value("calibration_images") == 99
    assert [value("threshold", group=g) for g in ("many", "medium", "few")] == [-5.5, -5.25, -5.0]
    assert [value("expected_rejection", group=g) for g in ("all", "many", "few")] == [0.05, 0.04, 0.06]
    assert value("expected_class_share", **{"class": "red", "group": "many"}) == pytest.approx(1000 / 1110)
    client.app.state.runtime.set_operating_point("ood95", "global")  # type: ignore[attr-defined]
    found = samples(client)
    assert [value("threshold", group=g) for g in ("many", "medium", "few")] == [-8.0, -8.0, -8.0]
    infos = [dict(labels) for name, labels in found if name == "tailguard_model_info"]
    assert [(i["operating_point"], i["scope"]) for i in infos] == [("ood95", "global")]


def test_calibration_and_live_scores_have_the_same_bounds(client: TestClient) -> None:
    """So that their difference in PromQL is a distance: live scores drawn as calibration gives a distance of 0."""
    found = samples(client)

    def bounds(name: str) -> set[str]:
        return {dict(labels)["le"] for n, labels in found if n == f"tailguard_{name}"}

    assert bounds("deciding_score_bucket") == bounds("calibration_cdf")
    current = client.app.state.runtime.model  # type: ignore[attr-defined]
    for score in tiny.ID_SCORES:
        verdict = decide(current.manifest, 0, score, "id95", "group")
        current.metrics.count_decision({"energy": score, "msp": 0.1}, verdict, by_deployment=True)
    found = samples(client)
    for le in bounds("calibration_cdf"):
        live = found[("tailguard_deciding_score_bucket", tuple(sorted((OURS | {"group": "many", "le": le}).items())))]
        promised = found[("tailguard_calibration_cdf", tuple(sorted((OURS | {"le": le}).items())))]
        assert live / len(tiny.ID_SCORES) == pytest.approx(promised)


def test_true_labels_are_counted_and_corrections_apart(client: TestClient) -> None:
    metrics = client.app.state.runtime.model.metrics  # type: ignore[attr-defined]
    reject = ("reject", "id95", "group")
    metrics.count_feedback(0, "correct", ("accept", "id95", "group"), by_deployment=True)
    metrics.count_feedback(2, "wrong", reject, by_deployment=True)
    metrics.count_feedback(2, "wrong", reject, -1, by_deployment=True)  # corrected: no counter may ever fall
    metrics.count_feedback(None, "outlier", reject, by_deployment=True)
    metrics.count_feedback(0, "correct", ("reject", "ood95", "group"), by_deployment=False)
    found = samples(client)
    counted = {tuple(dict(labels)[k] for k in ("class", "outcome", "decision")): v
               for (name, labels), v in found.items() if name == "tailguard_feedback_total" and v}  # fmt: skip
    assert counted == {
        ("red", "correct", "accept"): 1, ("blue", "wrong", "reject"): 1, ("outlier", "outlier", "reject"): 1,
    }  # fmt: skip
    assert found[("tailguard_feedback_corrections_total", tuple(sorted(OURS.items())))] == 1
    apart = OURS | {"outcome": "correct", "decision": "reject", "operating_point": "ood95", "scope": "group"}
    assert found[("tailguard_requested_feedback_total", tuple(sorted(apart.items())))] == 1


def test_decisions_at_a_point_that_the_request_named_are_counted_apart(client: TestClient) -> None:
    photo = tiny.photo((220, 30, 30))
    for query, times in (("", 3), ("?operating_point=ood95", 2), ("?operating_point=id95", 1)):
        for _ in range(times):
            client.post(f"/classify{query}", content=photo, headers=PNG)
    found = samples(client)
    assert decided(found, operating_point="id95") == decided(found) == 4  # naming the deployment's own is the same
    named = {k: v for k, v in found.items() if k[0] == "tailguard_requested_decisions_total"}
    assert sum(named.values()) == 2
    assert all(("operating_point", "ood95") in labels for _, labels in named)


def test_a_change_of_the_operating_point_begins_at_zero(client: TestClient) -> None:
    photo = tiny.photo((220, 30, 30))
    client.post("/classify", content=photo, headers=PNG)
    client.app.state.runtime.set_operating_point("ood95", "global")  # type: ignore[attr-defined]
    assert decided(samples(client), operating_point="ood95", scope="global") == 0
    client.post("/classify", content=photo, headers=PNG)
    found = samples(client)
    assert decided(found, operating_point="ood95", scope="global") == decided(found, operating_point="id95") == 1


def many_classes(manifest: bundle.Manifest, count: int) -> bundle.Manifest:
    """The same model with `count` classes, each with one training image less than the one before."""
    groups = manifest.group_names
    classes = tuple(
        manifest.classes[0].model_copy(
            update={"name": f"c{i}", "train_count": count - i, "group": groups[i * len(groups) // count]}
        )
        for i in range(count)
    )
    calibration = manifest.calibration.model_copy(update={"class_shares": (1 / count,) * count})
    return manifest.model_copy(update={"classes": classes, "calibration": calibration})


def test_thousands_of_classes_make_few_series_and_keep_the_groups(tiny_bundle: Path) -> None:
    manifest = many_classes(bundle.read(tiny_bundle), 8000)
    metrics = Metrics()
    model = ModelMetrics(manifest, "cpu", "id95", "group", max_classes=100)
    metrics.bind(model)
    for index in (0, 99, 100, 7999):
        verdict = decide(manifest, index, -9.0, "id95", "group")
        model.count_decision({"energy": -9.0, "msp": 0.1}, verdict, by_deployment=True)
    text = metrics.render().decode()
    assert len(text.splitlines()) < 2000
    families = {f.name: f for f in text_string_to_metric_families(text)}
    counted = [(s.labels["class"], s.labels["group"]) for s in families["tailguard_decisions"].samples if s.value]
    last = manifest.group_names[-1]
    others = "(other classes)"
    assert sorted(counted) == [(others, last), (others, "many"), ("c0", "many"), ("c99", "many")]
    shares = families["tailguard_expected_class_share"].samples
    assert sum(s.value for s in shares if s.labels["group"] == last) == pytest.approx(1 / 3, abs=0.001)


def test_images_are_counted_by_outcome() -> None:
    metrics = Metrics()
    for outcome in IMAGE_OUTCOMES:
        metrics.count_image(outcome)
    metrics.count_image("failed", 3)
    text = metrics.render().decode()
    assert 'tailguard_images_total{outcome="failed"} 4.0' in text
    assert 'tailguard_images_total{outcome="answered"} 1.0' in text


def test_deciding_bounds_are_finest_where_calibration_lies(tiny_bundle: Path) -> None:
    bounds = deciding_bounds(bundle.read(tiny_bundle))
    assert bounds == sorted(set(bounds))
    assert (bounds[0], bounds[-1]) == (-10.0, -1.5)
    steps = [sum(a < s <= b for s in tiny.ID_SCORES) / len(tiny.ID_SCORES) for a, b in pairwise(bounds)]
    assert max(steps) <= 1 / 20 + 1 / 99


def test_score_bounds_span_calibration(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    energy, msp = score_bounds(manifest, "energy"), score_bounds(manifest, "msp")
    assert (energy[0], energy[-1], len(energy)) == (-10.0, -1.5, 25)
    assert (msp[0], msp[-1]) == (0.0, 0.67)
    assert energy == sorted(set(energy))


def test_score_bounds_of_a_constant_score(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    flat = manifest.calibration.model_copy(update={"quantiles": {"msp": {"all": (0.5, 0.5, 0.5)}}})
    assert score_bounds(manifest.model_copy(update={"calibration": flat}), "msp") == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("stage", ["receive", "decode", "queue", "inference"])
def test_stages_are_in_seconds(client: TestClient, stage: str) -> None:
    client.post("/classify", content=tiny.photo(), headers=PNG)
    total = samples(client)[("tailguard_stage_seconds_sum", (("stage", stage),))]
    assert 0 < total < 1
