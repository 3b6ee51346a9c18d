"""What the images, the stack and the manifests promise, read from the files: users, ports, secrets, versions, drain."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings
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
def test_an_image_runs_as_a_number_that_is_not_root_in_exec_form(path: Path) -> None:
    last = dict(instructions(path))
    assert last["USER"] == "10001:10001"
    assert last["ENTRYPOINT"].startswith("[")
    assert last["HEALTHCHECK"] != ""
    assert f"VERSION={PROJECT['version']}" in [rest for word, rest in instructions(path) if word == "ARG"]


def test_the_service_image_ends_with_cpu_and_holds_no_training() -> None:
    stages = [rest.split(" AS ")[1] for word, rest in instructions(ROOT / "Dockerfile") if word == "FROM"]
    assert stages[-1] == "cpu"
    assert "gpu" in stages
    copied = [rest for word, rest in instructions(ROOT / "Dockerfile") if word == "COPY"]
    assert not [rest for rest in copied if "training" in rest]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_file_of_the_build_names_a_registry_of_packages(path: Path) -> None:
    assert "://" not in path.read_text()
    assert "index-url" not in path.read_text()


@pytest.mark.parametrize("extra", [None, "cpu", "gpu", "train", "parquet", "otel", "postgres"])
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


# Compose --------------------------------------------------------------------------------------------------------------


def test_the_stack_has_its_four_programs_and_the_one_that_makes_keys() -> None:
    assert set(services()) == {"keys", "tailguard", "prometheus", "alertmanager", "grafana"}


@pytest.mark.parametrize("name", ["keys", "tailguard", "prometheus", "alertmanager", "grafana"])
def test_a_container_of_the_stack_is_hardened_and_bounded(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    tag = service["image"].rpartition(":")[2]
    assert tag[0] in "v0123456789"


def test_nothing_is_published_off_loopback_unless_asked_for() -> None:
    ports = {port for service in services().values() for port in service.get("ports", [])}
    asked = "${SERVICE_ADDRESS:-127.0.0.1}:${SERVICE_PORT:-8000}:8000"
    assert asked in ports
    assert all(port.startswith("127.0.0.1:") for port in ports - {asked})


def test_no_secret_is_written_in_the_stack_and_grafana_lets_nobody_in_without_one() -> None:
    environment = services()["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"].startswith("/run/secrets/")
    assert "GF_SECURITY_ADMIN_PASSWORD" not in environment
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "TAILGUARD_ALLOW_ANONYMOUS" not in services()["tailguard"]["environment"]


def test_who_reads_a_volume_of_keys_reads_only_its_own() -> None:
    readers: dict[str, list[str]] = {}
    for name, service in services().items():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("keys-") and name != "keys":
                readers.setdefault(name, []).append(source)
                assert volume["read_only"]
    assert readers == {"tailguard": ["keys-service"], "prometheus": ["keys-prometheus"], "grafana": ["keys-grafana"]}


def test_the_stack_starts_in_the_order_of_health() -> None:
    wanted = {name: service.get("depends_on", {}) for name, service in services().items()}
    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    assert wanted["tailguard"] == {"keys": done}
    assert wanted["prometheus"] == {"keys": done, "alertmanager": healthy, "tailguard": healthy}
    assert wanted["grafana"] == {"keys": done, "prometheus": healthy}


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


def test_the_gpu_is_reserved_by_its_override() -> None:
    service = services(ROOT / "docker/compose.gpu.yaml")["tailguard"]
    assert service["build"]["target"] == "gpu"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_prometheus_reads_its_key_where_the_stack_puts_it() -> None:
    jobs = load(ROOT / "docker/prometheus/prometheus.yml")["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "tailguard"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    assert job["static_configs"] == [{"targets": ["tailguard:8000"]}]
    assert "metrics_key" in load(ROOT / "docker/compose.secrets.yaml")["secrets"]


# Drain, here and under Kubernetes -------------------------------------------------------------------------------------


def test_whoever_stops_a_container_waits_longer_than_grace_and_drain() -> None:
    assert int(services()["tailguard"]["stop_grace_period"].removesuffix("s")) > drain_s()
    for _, pod in pods():
        assert pod["terminationGracePeriodSeconds"] > drain_s()


@pytest.mark.parametrize(("name", "pod"), pods(), ids=["deployment", "kserve"])
def test_a_pod_is_hardened_and_its_probes_notice_the_grace(name: str, pod: Any) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert pod["enableServiceLinks"] is False  # TAILGUARD_PORT=tcp://… would be a setting, and a wrong one
    readiness = container["readinessProbe"]
    grace_s = float(Settings.model_fields["drain_grace_s"].default)
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= grace_s
    assert readiness["httpGet"]["path"].endswith("/health/ready")
    assert container["livenessProbe"]["httpGet"]["path"].endswith("/health/live")
    assert container["startupProbe"]["httpGet"]["path"].endswith("/health/ready")


def test_the_manifests_speak_of_one_another() -> None:
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
