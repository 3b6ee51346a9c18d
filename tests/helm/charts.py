"""What the real helm says of the chart: its lint, what it renders, and what it refuses."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.containers.files import ROOT
from tests.helm import program

CHART = ROOT / "docker/helm/tailguard"
EXAMPLES = sorted((ROOT / "docker/helm/examples").glob("*.yaml"))
EVERYTHING = Path(__file__).parent / "everything.yaml"
FILES = [*EXAMPLES, EVERYTHING]
KEYS = {"keys": {"existingSecret": "tailguard-keys"}}
Values = dict[str, Any]
Manifest = dict[str, Any]


def helm(*arguments: str, name: str = "helm", values: Values | None = None) -> subprocess.CompletedProcess[str]:
    """A run of helm, or of helm3, with `values` on its standard input. Skips where it is not installed."""
    found = program.found(name)
    if found is None:
        pytest.skip(program.missing(name))
    given = ("--values", "-") if values is not None else ()
    return subprocess.run(
        [found, *arguments, *given], input=json.dumps(values), capture_output=True, text=True, timeout=60
    )


def rendered(values: Values, name: str = "helm", release: str = "shop") -> list[Manifest]:
    """Every manifest of a release in the namespace vision. Raises AssertionError with what helm says."""
    return list(json.loads(_rendered(json.dumps(values), name, release)))


@functools.cache
def _rendered(values: str, name: str, release: str) -> str:
    yaml = pytest.importorskip("yaml")
    done = helm("template", release, str(CHART), "--namespace", "vision", name=name, values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return json.dumps([document for document in yaml.safe_load_all(done.stdout) if document is not None])


def refused(values: Values) -> list[str]:
    """The sentences with which the chart refuses values."""
    done = helm("template", "shop", str(CHART), values=values)
    assert done.returncode != 0, "the chart takes it"
    return [line.removeprefix("- ").strip() for line in done.stderr.splitlines() if line.startswith("- ")]


def of_kind(kind: str, manifests: list[Manifest]) -> Manifest:
    """The one manifest of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    found: Manifest = of_kind("Deployment", manifests)["spec"]["template"]["spec"]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    found: Manifest = pod(manifests)["containers"][0]
    return found


def environ(manifests: list[Manifest]) -> dict[str, Any]:
    """The container's variables; those from a Secret as (Secret, key)."""
    return {
        entry["name"]: entry["value"] if "value" in entry else tuple(entry["valueFrom"]["secretKeyRef"].values())
        for entry in container(manifests)["env"]
    }


def file(path: Path) -> Values:
    yaml = pytest.importorskip("yaml")
    found: Values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found
