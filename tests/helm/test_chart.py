"""The chart: linted, rendered by Helm 4 and 3, held against the strict schemas; its values and their schema."""

import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.settings import PREFIX, SECRETS, Settings
from tests.containers import schemas
from tests.containers.files import ROOT
from tests.helm import program, schema
from tests.helm.charts import (
    CHART,
    EVERYTHING,
    EXAMPLES,
    FILES,
    KEYS,
    container,
    environ,
    file,
    helm,
    of_kind,
    pod,
    refused,
    rendered,
)

NAMES = [path.stem for path in FILES]
OF_KUBERNETES = {"resources", "probes", "podSecurityContext", "securityContext"}  # whose parts Kubernetes explains


@pytest.mark.parametrize("name", program.PACKAGES)
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_lint_has_nothing_to_say(path: Path, name: str) -> None:
    done = helm("lint", "--strict", "--quiet", str(CHART), name=name, values=file(path))
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_helm_3_renders_what_helm_4_renders(path: Path) -> None:
    assert rendered(file(path), "helm3") == rendered(file(path), "helm")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_is_rendered_fits_the_strict_schemas_of_its_kinds(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for manifest in rendered(file(path)):
        wrong = list(jsonschema.Draft202012Validator(schemas.of(manifest)).iter_errors(manifest))
        assert not wrong, f"{manifest['kind']}: {[error.message for error in wrong]}"
        misspelt = manifest | {"speck": {}}
        assert list(jsonschema.Draft202012Validator(schemas.of(misspelt)).iter_errors(misspelt))


def test_the_files_render_every_template_and_use_every_value() -> None:
    """A template or a value that no test renders would be checked by none."""
    kinds = {manifest["kind"] for path in FILES for manifest in rendered(file(path))}
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.yaml"))
    assert kinds == set(re.findall(r"^kind: (\w+)", templates, re.MULTILINE))
    unused = set(file(CHART / "values.yaml")) - {name for path in FILES for name in file(path)}
    assert unused <= {"podSecurityContext", "securityContext", "resources", "tmpSizeLimit", "terminationMarginSeconds"}


def test_the_version_of_the_chart_is_that_of_the_project() -> None:
    chart = file(CHART / "Chart.yaml")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert container(rendered(KEYS))["image"] == f"tailguard:{version}-cpu"


# Values and their schema ----------------------------------------------------------------------------------------------


def test_the_schema_knows_exactly_the_settings_of_the_service() -> None:
    assert schema.PATH.read_text(encoding="utf-8") == schema.written(schema.whole()), "run python -m tests.helm.schema"


def test_every_value_has_a_comment_and_a_place_in_the_schema() -> None:
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    known = json.loads(schema.PATH.read_text(encoding="utf-8"))["properties"]
    assert set(file(CHART / "values.yaml")) == set(known) - {"global"}
    parent = ""
    for before, line in pairwise(lines):
        if (name := re.match(r"( {0,2})(\w+):", line)) is None:
            continue
        parent = parent if name[1] else name[2]
        if not name[1] or parent not in OF_KUBERNETES:
            assert before.lstrip().startswith("#"), f"{parent}, {name[2]}: no comment"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"TAILGUARD_QUEUE_IMAGE": 3}, "TAILGUARD_QUEUE_IMAGE'"),
        ({"QUEUE_IMAGES": 3}, "QUEUE_IMAGES"),
        ({"TAILGUARD_QUEUE_IMAGES": "many"}, "many"),
        ({"TAILGUARD_QUEUE_IMAGES": 0}, "TAILGUARD_QUEUE_IMAGES"),
        ({"TAILGUARD_SHADOW_SHARE": 1.5}, "TAILGUARD_SHADOW_SHARE"),
        ({"TAILGUARD_KEEP": "some"}, "rejected"),
        ({"TAILGUARD_ALLOW_ANONYMOUS": "maybe"}, "maybe"),
        *[({PREFIX + name.upper(): "x"}, "give keys by keys.existingSecret") for name in SECRETS],
    ],
    ids=str,
)
def test_lint_refuses_a_wrong_setting_and_names_it(settings: dict[str, Any], named: str) -> None:
    done = helm("lint", "--strict", str(CHART), values=KEYS | {"settings": settings})
    assert done.returncode != 0
    assert named in done.stdout + done.stderr


@pytest.mark.parametrize("values", [{"replica": 2}, {"keys": {"secret": "x"}}, {"env": [{"name": "TAILGUARD_STOR"}]}])
def test_a_misspelt_value_is_refused(values: dict[str, Any]) -> None:
    assert helm("lint", "--strict", str(CHART), values=KEYS | values).returncode != 0


def test_every_setting_reaches_the_container_as_the_service_reads_it() -> None:
    """Numbers too, which a values file makes floats: 10485760 and not 1.048576e+07; and quoted ones."""
    given: dict[str, Any] = {"TAILGUARD_MAX_BODY_BYTES": 10485760, "TAILGUARD_STORE_MAX_BYTES": 2**40,
                             "TAILGUARD_REQUESTS_PER_S": 0.25, "TAILGUARD_MAX_PIXELS": "50000000",
                             "TAILGUARD_IDLE_TIMEOUT_S": 75.0, "TAILGUARD_ALLOW_ANONYMOUS": True}  # fmt: skip
    texts = {"TAILGUARD_MAX_BODY_BYTES": "10485760", "TAILGUARD_STORE_MAX_BYTES": "1099511627776",
             "TAILGUARD_REQUESTS_PER_S": "0.25", "TAILGUARD_MAX_PIXELS": "50000000",
             "TAILGUARD_IDLE_TIMEOUT_S": "75", "TAILGUARD_ALLOW_ANONYMOUS": "true"}  # fmt: skip
    assert environ(rendered({"settings": given})) == texts
    free = {PREFIX + n.upper() for n in Settings.model_fields if n not in SECRETS}
    assert set(schema.of_settings()) - {PREFIX + name.upper() for name in SECRETS} == free


def test_a_value_that_is_left_empty_is_none_or_is_named() -> None:
    """As in a file where all below a name is a comment: null, which Helm takes away."""
    filled = KEYS | {"ingress": {"enabled": True, "hosts": ["a.org"]}, "serviceMonitor": {"enabled": True}}
    for name, default in file(CHART / "values.yaml").items():
        if default in ({}, []):
            assert rendered(filled | {name: None}) == rendered(filled | {name: default}), name
        elif isinstance(default, dict):
            done = helm("template", "shop", str(CHART), values=filled | {name: None})
            assert done.returncode == 0 or f"'{name}'" in done.stderr, (name, done.stderr)
            assert "nil pointer" not in done.stderr


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({}, []),
        ({"ledger": {"url": "postgresql://a:b:c@pool:6543/x?sslmode=require"}}, [6543]),
        ({"ledger": {"url": "postgresql://a:b@pool/x", "port": 5433}}, [5433]),
        ({"settings": {"TAILGUARD_BUNDLE": f"http://models:8081/shop/3#sha256={'A' * 64}"}}, [443, 8081]),
        ({"settings": {"TAILGUARD_SHADOW_BUNDLE": f"http://models/shop/3#sha256={'a' * 64}"}}, [443, 80]),
        ({"settings": {"TAILGUARD_BUNDLE": "s3://models/shop/3"},
          "env": [{"name": "AWS_ENDPOINT_URL", "value": "http://minio.storage:9000/"}]}, [443, 9000]),
        ({"env": [{"name": "TAILGUARD_BUNDLE", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}, [443]),
        ({"settings": {"TAILGUARD_OTLP_ENDPOINT": "http://otel.monitoring:4318/v1/traces"}}, [4318]),
    ],
)  # fmt: skip
def test_what_settings_name_can_be_reached(values: dict[str, Any], ports: list[int]) -> None:
    """A database at another port, MinIO, a web server without TLS: every packet was dropped without a word."""
    rules = of_kind("NetworkPolicy", rendered(KEYS | values))["spec"]["egress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [53, 53, *ports]


def test_a_bundle_that_a_secret_names_has_a_cache() -> None:
    """Its address holds a token, say; the container's own file system is read-only."""
    named = {"name": "TAILGUARD_BUNDLE", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    manifests = rendered(KEYS | {"env": [named]})
    assert container(manifests)["env"][-1] == named
    assert "/var/cache/tailguard" in [mount["mountPath"] for mount in container(manifests)["volumeMounts"]]


def test_what_is_no_setting_can_be_a_number_in_quotes() -> None:
    quoted = rendered(KEYS | {"replicas": "1", "service": {"port": "80"}, "terminationMarginSeconds": "10"})
    assert of_kind("Deployment", quoted)["spec"]["replicas"] == 1
    assert of_kind("Service", quoted)["spec"]["ports"][0]["port"] == 80
    assert pod(quoted)["terminationGracePeriodSeconds"] == 32


# Names and secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "release", ["shop", "tailguard", "a" * 53, "b" * 52 + "1", "7eleven", "team.shop", "my-tailguard"]
)
def test_names_are_labels_of_dns_however_the_release_is_called(release: str) -> None:
    values = file(EVERYTHING) | {"fullnameOverride": ""}
    for manifest in rendered(values, release=release):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
        assert all(len(str(label)) <= 63 for label in manifest["metadata"]["labels"].values())


def test_two_releases_of_one_namespace_have_nothing_in_common() -> None:
    """Neither names nor pods: also those whose names differ only in what is cut away."""
    values = file(EVERYTHING) | {"fullnameOverride": ""}
    releases = ("c" * 51 + "1", "c" * 51 + "2", "shop", "tailguard")
    found = [rendered(values, release=release) for release in releases]
    names = [(m["kind"], m["metadata"]["name"]) for manifests in found for m in manifests]
    assert len(set(names)) == len(names)
    labels = [of_kind("Deployment", m)["spec"]["template"]["metadata"]["labels"] for m in found]
    for number, manifests in enumerate(found):
        deployment = of_kind("Deployment", manifests)["spec"]["selector"]["matchLabels"]
        for selector in (
            deployment,
            of_kind("Service", manifests)["spec"]["selector"],
            of_kind("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"],
            of_kind("NetworkPolicy", manifests)["spec"]["podSelector"]["matchLabels"],
        ):
            assert [selector.items() <= of.items() for of in labels] == [i == number for i in range(len(found))]
        assert not deployment.items() <= of_kind("Pod", manifests)["metadata"]["labels"].items()
        monitored = of_kind("ServiceMonitor", manifests)["spec"]["selector"]["matchLabels"]
        assert monitored.items() <= of_kind("Service", manifests)["metadata"]["labels"].items()
        query = of_kind("ScaledObject", manifests)["spec"]["triggers"][0]["metadata"]["query"]
        assert f'service="{of_kind("Service", manifests)["metadata"]["name"]}"' in query


def test_secrets_are_in_secrets_alone_and_a_new_one_rolls_the_pods() -> None:
    values = file(EVERYTHING)
    for manifest in rendered(values):
        if manifest["kind"] == "Secret":
            continue
        assert not re.search("s3cret-of-ci|p4ssword", json.dumps(manifest)), manifest["kind"]
    assert environ(rendered(values | {"env": []}))["TAILGUARD_LEDGER"] == ("classifier-ledger", "address")
    before, after = (
        of_kind("Deployment", rendered(values | {"keys": keys}))["spec"]["template"]
        for keys in (values["keys"], values["keys"] | {"toml": '[keys.ci]\nkey = "another"\n'})
    )
    assert before != after


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_needs_nothing_that_it_does_not_say(path: Path) -> None:
    """Its Secrets are named in its comments or in those of another example."""
    text = " ".join(example.read_text(encoding="utf-8") for example in EXAMPLES)
    for name in re.findall(r"existingSecret: ([\w-]+)", path.read_text(encoding="utf-8")):
        assert f"create secret generic {name}" in text


def test_without_values_it_is_refused_with_what_to_do() -> None:
    (sentence,) = refused({})
    assert "keys.existingSecret" in sentence
    assert "kubectl create secret generic tailguard-keys" in sentence


def test_the_notes_say_how_to_ask_and_what_goes_with_the_pod() -> None:
    done = helm("install", "shop", str(CHART), "--dry-run=client", "--namespace", "vision", values=KEYS)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "port-forward service/shop-tailguard 8000" in notes
    assert "is killed 30 s after TERM" in notes
    assert "The ledger is in memory" in notes
