"""What follows from the settings in values.schema.json of the chart: `python -m tests.helm.schema` writes it."""

import json
from typing import Any

from service.settings import PREFIX, SECRETS, Settings
from tests.containers.files import ROOT

PATH = ROOT / "docker/helm/tailguard/values.schema.json"
WHOLE, REAL = r"^-?[0-9]+$", r"^-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"
TEXT_OF = {"integer": WHOLE, "number": REAL, "boolean": "^(?i:true|false|1|0|yes|no|on|off)$"}
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const")
NOT_HERE = "a secret does not belong into settings: give keys by keys.existingSecret, or this by env with valueFrom"
SHORT, DEEP = 120, 4
Schema = dict[str, Any]


def of_settings() -> dict[str, Schema]:
    """The schema of each variable: its type and bounds. Numbers and true or false may be text; a secret is refused."""
    found: dict[str, Schema] = {}
    fields = Settings.model_json_schema()["properties"]
    for name, schema in fields.items():
        variable = PREFIX + name.upper()
        if name in SECRETS:
            found[variable] = {"const": NOT_HERE}
            continue
        kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
        said = " ".join(schema["description"].split())
        found[variable] = {"description": said, **_variable(kinds)}
    return found


def _variable(kinds: list[Schema]) -> Schema:
    if any(kind.get("type", "string") == "string" for kind in kinds):  # a path or an address, a name, a choice
        choices = [choice for kind in kinds for choice in kind.get("enum", [])]
        return {"type": "string"} | ({"enum": ["", *choices]} if choices else {})
    (kind,) = kinds
    bounds = {word: kind[word] for word in BOUNDS if word in kind}
    return {"type": [kind["type"], "string"], "pattern": f"^$|{TEXT_OF[kind['type']]}", **bounds}


def whole() -> Schema:
    """The schema of the values as it should be: that of the file, with what follows from the settings put in anew."""
    schema: Schema = json.loads(PATH.read_text(encoding="utf-8"))
    settings = of_settings()
    schema["$defs"]["settings"]["properties"] = settings
    schema["$defs"]["variable"]["properties"]["name"]["anyOf"][1]["enum"] = list(settings)
    return schema


def written(schema: Any, depth: int = 0) -> str:
    """JSON, with what is short or deep on one line."""
    line = json.dumps(schema, ensure_ascii=False)
    if not isinstance(schema, dict) or len(line) < SHORT or depth == DEEP:
        return line
    blank = "  " * (depth + 1)
    parts = [f"{blank}{json.dumps(name)}: {written(part, depth + 1)}" for name, part in schema.items()]
    return "{\n" + ",\n".join(parts) + f"\n{blank[2:]}}}" + ("" if depth else "\n")


if __name__ == "__main__":
    PATH.write_text(written(whole()), encoding="utf-8")
