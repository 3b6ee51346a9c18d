"""What the images, the stack and the manifests have in common with the project: versions, settings, times, metrics.

What a file says by itself is not said again here: linters and schemas check it (test_schemas.py), the engine runs it
(test_run.py).
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings
from service.web.app import create_app
from tests.containers.files import ROOT, instructions, load, manifests, pins

DOCKERFILES = [ROOT / "Dockerfile", ROOT / "docker/training.Dockerfile"]
STACK = ROOT / "compose.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def services(path: Path = STACK) -> dict[str, Any]:
    return dict(load(path)["services"])


def drain_s() -> float:
    default = Settings.model_fields
    return float(default["drain_grace_s"].default) + float(default["drain_s"].default)


def pods() -> list[tuple[str, Any]]:
    """(file name, pod specification) of what runs pods by itself, with its containers."""
    deployment = load(ROOT / "docker/k8s/deployment.yaml")["spec"]["template"]["spec"]
    runtime = load(ROOT / "docker/k8s/kserve/servingruntime.yaml")["spec"]
    predictor = load(ROOT / "docker/k8s/kserve/inferenceservice.yaml")["spec"]["predictor"]
    return [("deployment", deployment), ("kserve", runtime | predictor)]


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_file_of_the_build_names_a_registry_of_packages(path: Path) -> None:
    assert "://" not in path.read_text()
    assert "index-url" not in path.read_text()


@pytest.mark.parametrize("extra", [None, "cpu", "gpu", "train", "parquet", "otel", "postgres", "s3"])
def test_every_dependency_is_pinned_to_a_version_that_the_project_allows(extra: str | None) -> None:
    extras = PROJECT["optional-dependencies"]
    pinned = pins("constraints.txt") | pins("constraints-gpu.txt")
    for text in extras[extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin in docker/constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def test_the_extras_of_the_image_are_extras_of_the_project() -> None:
    """pip only warns about an extra that is not known, and the image would lack it."""
    wanted = {rest.partition("=")[2] for word, rest in instructions(ROOT / "Dockerfile") if rest.startswith("EXTRAS=")}
    assert len(wanted) == 1  # the same with and without a GPU
    assert set(wanted.pop().split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_settings_that_the_stack_names_exist() -> None:
    known = {f"TAILGUARD_{name.upper()}" for name in Settings.model_fields}
    named = {
        name
        for path in [STACK, *(ROOT / "docker").glob("compose.*.yaml")]
        for name in services(path).get("tailguard", {}).get("environment", {})
    }
    named |= {entry["name"] for _, pod in pods() for entry in pod["containers"][0]["env"]}
    named |= {
        pair.split("=")[0]
        for word, rest in instructions(ROOT / "Dockerfile")
        if word == "ENV"
        for pair in rest.split()
        if pair.startswith("TAILGUARD_")
    }
    assert named <= known


# Drain, here and under Kubernetes -------------------------------------------------------------------------------------


def test_stopping_a_container_waits_longer_than_grace_and_drain() -> None:
    assert int(services()["tailguard"]["stop_grace_period"].removesuffix("s")) > drain_s()
    for _, pod in pods():
        assert pod["terminationGracePeriodSeconds"] > drain_s()


@pytest.mark.parametrize(("name", "pod"), pods(), ids=["deployment", "kserve"])
def test_the_probes_of_a_pod_ask_routes_of_the_service_and_notice_the_grace(name: str, pod: Any) -> None:
    (container,) = pod["containers"]
    readiness = container["readinessProbe"]
    grace_s = float(Settings.model_fields["drain_grace_s"].default)
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= grace_s
    paths = {path for path, item in create_app(Settings()).openapi()["paths"].items() if "get" in item}
    probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness", "startup")]
    assert set(probes) <= paths
    assert [path.rpartition("/")[2] for path in probes] == ["ready", "live", "ready"]


def test_the_manifests_name_one_another() -> None:
    by_kind = {manifest["kind"]: manifest for manifest in map(load, manifests())}
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    name = {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}
    assert by_kind["Deployment"]["spec"]["selector"]["matchLabels"] == name
    assert by_kind["Service"]["spec"]["selector"] == name
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == name
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == name
    assert by_kind["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == by_kind["Service"]["metadata"]["labels"]
    assert by_kind["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    assert "replicas" not in by_kind["Deployment"]["spec"]  # they would undo the scaling at every apply
    model = by_kind["InferenceService"]["spec"]["predictor"]["model"]
    assert model["runtime"] == by_kind["ServingRuntime"]["metadata"]["name"]
    assert model["protocolVersion"] in by_kind["ServingRuntime"]["spec"]["protocolVersions"]


def test_the_metric_that_scales_exists() -> None:
    from service.observe.metrics import Metrics

    query = load(ROOT / "docker/k8s/scaledobject.yaml")["spec"]["triggers"][0]["metadata"]["query"]
    assert "tailguard_requests_in_flight" in query
    assert b"\ntailguard_requests_in_flight" in Metrics().render()


@pytest.mark.parametrize("path", [STACK, ROOT / "docker/compose.gpu.yaml", *manifests()], ids=lambda path: path.name)
def test_every_image_of_ours_has_the_version_of_the_project(path: Path) -> None:
    for line in path.read_text().splitlines():
        if "image: tailguard:" in line:
            assert f"tailguard:{PROJECT['version']}-" in line


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_label_of_an_image_has_the_version_of_the_project(path: Path) -> None:
    assert f"VERSION={PROJECT['version']}" in [rest for word, rest in instructions(path) if word == "ARG"]


def test_the_network_policy_lets_out_what_settings_can_name() -> None:
    """PostgreSQL for the ledger, OTLP over HTTP for traces, and names."""
    policy = next(d for path in manifests() for d in [load(path)] if d["kind"] == "NetworkPolicy")
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53, 5432, 4318}
