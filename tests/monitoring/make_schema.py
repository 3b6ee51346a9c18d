"""Make grafana_schema.json: `python -m tests.monitoring.make_schema`. Needs node and npm; the tests do not.

The types of Grafana's dashboards come from npm's @grafana/schema (Apache-2.0, Grafana Labs), in the versions below, and
ts-json-schema-generator turns them into JSON Schema, one for dashboards and two for each panel type that is used:
its options and its custom field settings. Only the prose is left out.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

VERSIONS = ("@grafana/schema@12.4.11", "ts-json-schema-generator@2", "typescript@5")
KEPT = Path(__file__).with_name("grafana_schema.json")
RAW = "@grafana/schema/dist/types/raw"
PANELS = ("barchart", "bargauge", "heatmap", "stat", "table", "timeseries")
WITH_FIELDS = frozenset({"barchart", "heatmap", "table", "timeseries"})


def generated(folder: Path, source: str, name: str) -> Any:
    """The schema of the type `name` of a module of @grafana/schema."""
    (folder / "entry.ts").write_text(f'import type {{{name}}} from "{RAW}/{source}";\nexport type Wanted = {name};\n')
    command = ["npx", "ts-json-schema-generator", "--path", "entry.ts", "--tsconfig", "tsconfig.json"]
    done = subprocess.run([*command, "--type", "Wanted"], cwd=folder, check=True, capture_output=True, text=True)
    return without_prose(json.loads(done.stdout))


def without_prose(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_prose(item) for item in schema]
    if isinstance(schema, dict):
        prose = {"description", "$comment", "deprecated"}
        return {k: without_prose(v) for k, v in schema.items() if not (k in prose and isinstance(v, str))}
    return schema


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", ".", *VERSIONS]
        subprocess.run(install, cwd=folder, check=True, capture_output=True)
        options = {"strict": True, "skipLibCheck": True, "moduleResolution": "node", "types": []}
        (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["entry.ts"]}))
        found = {"dashboard": generated(folder, "dashboard/x/types.gen", "Dashboard")}
        for panel in PANELS:
            source = f"composable/{panel}/panelcfg/x/types.gen"
            found[f"{panel} options"] = generated(folder, source, "Options")
            if panel in WITH_FIELDS:
                found[f"{panel} custom"] = generated(folder, source, "FieldConfig")
    made = {"$comment": f"Made by {Path(__file__).name} from {VERSIONS[0]}, Apache-2.0, Grafana Labs.", **found}
    KEPT.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{KEPT}: {KEPT.stat().st_size} bytes, {len(found)} schemas")


if __name__ == "__main__":
    main()
