"""The chart says what docker/k8s and docker/proxy say, where they speak of the same; and a pod ends after its drain."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.containers.files import ROOT, load, manifests
from tests.helm.charts import EXAMPLES, KEYS, container, environ, file, of_kind, pod, rendered

NGINX = (ROOT / "docker/proxy/nginx.conf").read_text()
HAPROXY = (ROOT / "docker/proxy/haproxy.cfg").read_text()
RULE = "nginx.ingress.kubernetes.io/"
INGRESS = KEYS | {"ingress": {"enabled": True, "hosts": ["classify.example.org"]}}
STATED = KEYS | {  # what the manifests state, as values
    "fullnameOverride": "tailguard",
    "ledger": {"existingSecret": "tailguard-ledger"},
    "settings": {"TAILGUARD_OTLP_ENDPOINT": "http://collector.monitoring.svc:4318"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True},
}
KSERVE = KEYS | {
    "fullnameOverride": "tailguard",
    "ledger": {"existingSecret": "tailguard-ledger"},
    "kserve": {"enabled": True, "storageUri": "pvc://models/cifar10-lt/2"},
}
DIFFERENT = {  # on purpose
    # the chart knows whether there is a ledger's Secret; the manifest does not
    ("Deployment", "spec.template.spec.containers.tailguard.env.TAILGUARD_LEDGER.valueFrom.secretKeyRef.optional"),
    # a release counts its own requests alone
    ("ScaledObject", "spec.triggers.0.metadata.query"),
}


def missing(manifest: Any, chart: Any, path: str = "") -> Iterator[str]:
    """Where `chart` lacks what the manifest states, or says otherwise. Items of lists go by name, if they have one."""
    if isinstance(manifest, dict) and isinstance(chart, dict):
        for name, value in manifest.items():
            yield from missing(value, chart.get(name), f"{path}.{name}" if path else name)
    elif isinstance(manifest, list) and isinstance(chart, list):
        named = all(isinstance(item, dict) and "name" in item for item in [*manifest, *chart])
        if not named and len(manifest) != len(chart):
            yield path
            return
        by_name = {item["name"]: item for item in chart} if named else {}
        for number, item in enumerate(manifest):
            name = item["name"] if named else str(number)
            yield from missing(item, by_name.get(name) if named else chart[number], f"{path}.{name}")
    elif manifest != chart:
        yield path


@pytest.mark.parametrize("path", manifests(), ids=lambda path: path.name)
def test_the_chart_says_all_that_a_manifest_says(path: Path) -> None:
    manifest = load(path)
    kind = manifest["kind"]
    chart = of_kind(kind, rendered(KSERVE if "kserve" in path.parts else STATED))
    found = {(kind, where) for where in missing(manifest, chart)}
    assert found == {pair for pair in DIFFERENT if pair[0] == kind}


@pytest.mark.parametrize("field", ["securityContext", "resources", "readinessProbe", "livenessProbe", "startupProbe"])
def test_with_its_default_values_the_container_is_that_of_the_manifest(field: str) -> None:
    """Not only all that it says: exactly that."""
    manifest = load(ROOT / "docker/k8s/deployment.yaml")["spec"]["template"]["spec"]
    assert container(rendered(KEYS))[field] == manifest["containers"][0][field]
    assert pod(rendered(KEYS))["securityContext"] == manifest["securityContext"]


def test_a_manifest_that_says_something_else_is_noticed() -> None:
    manifest = load(ROOT / "docker/k8s/deployment.yaml")
    inside = manifest["spec"]["template"]["spec"]
    inside["containers"][0]["livenessProbe"]["failureThreshold"] = 7
    inside["containers"][0]["securityContext"]["capabilities"]["drop"] = ["NET_ADMIN"]
    inside["hostNetwork"] = False
    found = set(missing(manifest, of_kind("Deployment", rendered(STATED))))
    first = "spec.template.spec.containers.tailguard"
    assert {f"{first}.livenessProbe.failureThreshold", f"{first}.securityContext.capabilities.drop.0",
            "spec.template.spec.hostNetwork"} <= found  # fmt: skip


def test_the_query_that_scales_is_the_manifests_for_one_release() -> None:
    ours, theirs = (
        scaled["spec"]["triggers"][0]["metadata"]["query"]
        for scaled in (of_kind("ScaledObject", rendered(STATED)), load(ROOT / "docker/k8s/scaledobject.yaml"))
    )
    assert ours.replace(',namespace="vision",service="tailguard"', "") == theirs
    bigger = STATED | {"settings": {"TAILGUARD_QUEUE_IMAGES": 256}}
    assert of_kind("ScaledObject", rendered(bigger))["spec"]["triggers"][0]["metadata"]["threshold"] == "64"


def test_the_gpu_has_the_image_the_provider_the_resource_and_the_memory_of_compose() -> None:
    found = rendered(file(ROOT / "docker/helm/examples/gpu.yaml"))
    stack = load(ROOT / "docker/compose.gpu.yaml")["services"]["tailguard"]
    assert container(found)["image"].endswith(stack["image"].partition(":")[2])
    assert environ(found)["TAILGUARD_PROVIDER"] == stack["environment"]["TAILGUARD_PROVIDER"]
    limits = container(found)["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == stack["deploy"]["resources"]["reservations"]["devices"][0]["count"]
    assert f"SERVICE_MEMORY:-{limits['memory'].removesuffix('Gi')}g" in stack["deploy"]["resources"]["limits"]["memory"]


# Upgrades -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "drain"), [(None, None), (5, 60), ("1.5", "0.25"), (2.0, 120.5)])
def test_a_pod_is_killed_only_after_its_drain_and_notices_the_grace(grace: Any, drain: Any) -> None:
    given = {"TAILGUARD_DRAIN_GRACE_S": grace, "TAILGUARD_DRAIN_S": drain}
    found = rendered(KEYS | {"settings": {name: value for name, value in given.items() if value is not None}})
    defaults = Settings.model_fields
    grace_s, drain_s = float(grace or defaults["drain_grace_s"].default), float(drain or defaults["drain_s"].default)
    assert grace_s + drain_s + 8 <= pod(found)["terminationGracePeriodSeconds"] < grace_s + drain_s + 9
    readiness = container(found)["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= grace_s


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_upgrade_never_has_two_writers_of_one_volume_nor_fewer_pods_than_before(path: Path) -> None:
    found = rendered(file(path))
    if not any(manifest["kind"] == "Deployment" for manifest in found):
        return  # KServe's own
    strategy = of_kind("Deployment", found)["spec"]["strategy"]
    if any(manifest["kind"] == "PersistentVolumeClaim" for manifest in found):
        assert strategy == {"type": "Recreate"}
    elif path.stem != "gpu":  # where a spare one costs a GPU
        assert strategy == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


# The Ingress ----------------------------------------------------------------------------------------------------------


def ingresses(values: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Annotations by path, those of ingress-nginx without their prefix."""
    return {
        found["spec"]["rules"][0]["http"]["paths"][0]["path"]: {
            name.removeprefix(RULE): value for name, value in found["metadata"].get("annotations", {}).items()
        }
        for found in rendered(values)
        if found["kind"] == "Ingress"
    }


def test_the_ingress_has_the_rules_of_the_proxies() -> None:
    places = dict(re.findall(r"location (\S+) \{.*?proxy_next_upstream ([^;]+);", NGINX, re.DOTALL))
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    found = ingresses(INGRESS)
    assert {path: rules["proxy-next-upstream"] for path, rules in found.items()} == places
    for rules in found.values():
        assert (
            int(rules["proxy-body-size"]) == int(megabytes) * 2**20 == Settings.model_fields["max_body_bytes"].default
        )
        for rule, line in (
            ("proxy-connect-timeout", r"timeout connect (\d+)s"),
            ("proxy-read-timeout", r"timeout server (\d+)s"),
            ("proxy-send-timeout", r"timeout server (\d+)s"),
            ("proxy-next-upstream-tries", r"retries (\d+)"),
        ):
            assert [rules[rule]] == re.findall(line, HAPROXY), rule
        # a request goes to another replica whole: nginx must still have it
        assert (rules["proxy-request-buffering"], "proxy_request_buffering" in NGINX) == ("on", False)


def test_the_ingress_follows_the_settings_and_the_annotations_that_are_given() -> None:
    given = {"TAILGUARD_MAX_BODY_BYTES": 52428800, "TAILGUARD_REQUEST_TIMEOUT_S": 120}
    annotations = {f"{RULE}proxy-connect-timeout": "9", "example.org/x": "y"}
    found = ingresses(INGRESS | {"settings": given, "ingress": INGRESS["ingress"] | {"annotations": annotations}})
    for rules in found.values():
        assert rules["proxy-body-size"] == "52428800"
        assert (rules["proxy-read-timeout"], rules["proxy-connect-timeout"], rules["example.org/x"]) == (
            "125",
            "9",
            "y",
        )


def test_another_controller_gets_one_ingress_without_rules_of_nginx() -> None:
    values = INGRESS | {"ingress": INGRESS["ingress"] | {"nginxRules": False, "className": "haproxy"}}
    assert ingresses(values) == {"/": {}}


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "ports"),
    [
        ({}, {53}),
        ({"ledger": {"existingSecret": "l"}}, {53, 5432}),
        ({"settings": {"TAILGUARD_BUNDLE": "s3://models/shop/3"}}, {53, 443}),
        ({"settings": {"TAILGUARD_STORE": "gs://images"}}, {53, 443}),
        ({"settings": {"TAILGUARD_OTLP_ENDPOINT": "http://collector.monitoring.svc:9418/v1"}}, {53, 9418}),
        ({"settings": {"TAILGUARD_OTLP_ENDPOINT": "http://collector.monitoring.svc"}}, {53, 80}),
    ],
)
def test_the_network_policy_lets_out_what_the_settings_name_and_nothing_else(more: Any, ports: set[int]) -> None:
    policy = of_kind("NetworkPolicy", rendered(KEYS | more))["spec"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == ports
