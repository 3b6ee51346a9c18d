"""JSON Schemas of Kubernetes, the Prometheus Operator, KEDA and KServe, strict, made from their packages on PyPI."""

import ast
import functools
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

Schema = dict[str, Any]
KUBERNETES = "v1.37.0-local-strict"
CORE = {
    "apps/v1 Deployment": "io.k8s.api.apps.v1.Deployment",
    "v1 Service": "io.k8s.api.core.v1.Service",
    "policy/v1 PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "networking.k8s.io/v1 NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "networking.k8s.io/v1 Ingress": "io.k8s.api.networking.v1.Ingress",
    "v1 Secret": "io.k8s.api.core.v1.Secret",
    "v1 ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "v1 PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "v1 Pod": "io.k8s.api.core.v1.Pod",
}
CUSTOM = {  # pydantic models, generated from the CRDs
    "monitoring.coreos.com/v1 ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "keda.sh/v1alpha1 ScaledObject": "cloudcoil.models.keda.v1alpha1",
}
KSERVE = {  # models of KServe's own SDK
    "serving.kserve.io/v1beta1 InferenceService": "V1beta1InferenceService",
    "serving.kserve.io/v1alpha1 ServingRuntime": "V1alpha1ServingRuntime",
}
SIMPLE: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
}


def of(manifest: Schema) -> Schema:
    """The strict schema of a manifest's kind. Skips when its package is not installed; KeyError for another kind."""
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    if kind in CORE:
        return {"$ref": f"#/$defs/{CORE[kind]}", "$defs": _kubernetes()}
    if kind in CUSTOM:
        module = pytest.importorskip(CUSTOM[kind])
        return _closed(getattr(module, manifest["kind"]).model_json_schema())
    return {"$ref": f"#/$defs/{KSERVE[kind]}", "$defs": _kubernetes() | _kserve()}


def _folder(package: str) -> Path:
    """Where a package lies, without importing it: KServe's would need all that a model server needs."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _kubernetes() -> dict[str, Schema]:
    path = _folder("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES / "_definitions.json"
    definitions: dict[str, Schema] = json.loads(path.read_text().replace("/api/_definitions.json#", "#"))["$defs"]
    return definitions


def _closed(schema: Any) -> Any:
    """The schema, with unknown properties refused everywhere: a misspelt one must not pass."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


@functools.cache
def _kserve() -> dict[str, Schema]:
    """One definition for each model of the SDK, read from its source."""
    core = {name.rsplit(".", 1)[1]: name for name in _kubernetes() if name.startswith("io.k8s.api.core.v1.")}
    core["ObjectMeta"] = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    found = {}
    for path in sorted((_folder("kserve") / "models").glob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found[node.name] = _model(node, text, core)
    return found


def _model(node: ast.ClassDef, text: str, core: dict[str, str]) -> Schema:
    tables = {
        target.id: ast.literal_eval(part.value)
        for part in node.body
        if isinstance(part, ast.Assign)
        for target in part.targets
        if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
    }
    names = tables["attribute_map"]
    return {
        "type": "object",
        "properties": {names[name]: _typed(kind, core) for name, kind in tables["openapi_types"].items()},
        "required": sorted({names[name] for name in re.findall(r"for `(\w+)`, must not be `None`", text)}),
        "additionalProperties": False,
    }


def _typed(kind: str, core: dict[str, str]) -> Schema:
    """The schema of a type as the SDK writes it: str, list[X], dict(str, X) or the name of a model."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _typed(inner[1], core)}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _typed(inner[1], core)}
    name = core.get(kind.removeprefix("V1")) if kind.startswith("V1") else None
    return {"$ref": f"#/$defs/{name or kind}"}
