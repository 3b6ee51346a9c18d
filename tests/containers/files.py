"""The files of the containers, parsed."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def manifests() -> list[Path]:
    return sorted((ROOT / "docker/k8s").rglob("*.yaml"))


def load(path: Path) -> Any:
    """The one YAML document of a file; compose's tags for merging are dropped. Skips without PyYAML."""
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined,misc]
        """As SafeLoader, and takes compose's tags."""

    Loader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))
    Loader.add_constructor("!override", _untagged)
    return yaml.load(path.read_text(), Loader)


def _untagged(loader: Any, node: Any) -> Any:
    return loader.construct_mapping(node, True) if node.id == "mapping" else loader.construct_sequence(node, True)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of a Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()
    ]


def pins(name: str) -> dict[str, str]:
    """Versions by normalised name of a constraints file."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "docker" / name).read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in (line.split("==") for line in lines if line)}
