"""The dashboards against Grafana's own schema, and against what every panel of this project must have."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="jsonschema-rs comes with schemathesis")

GRAFANA = ROOT / "docker" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
SCHEMAS: dict[str, Any] = json.loads(Path(__file__).with_name("grafana_schema.json").read_text())
UID = "tailguard-prometheus"
# Grafana's ids of units, from its list of value formats.
UNITS = frozenset({"bool_yes_no", "bytes", "cps", "none", "percentunit", "reqps", "s", "short"})
QUERY_FIELDS = frozenset(
    {"datasource", "editorMode", "expr", "format", "instant", "legendFormat", "range", "refId"}
)  # of Grafana's PrometheusQuery, which @grafana/schema leaves out
BUILT_IN = frozenset({"__rate_interval", "__range"})

Json = dict[str, Any]


def errors(schema: str, instance: Any) -> list[str]:
    validator = jsonschema_rs.validator_for(SCHEMAS[schema])
    return [f"{'/'.join(map(str, e.instance_path))}: {e.message}" for e in validator.iter_errors(instance)]


def faults(dashboard: Json) -> list[str]:
    found = errors("dashboard", dashboard)
    for panel in dashboard["panels"]:
        kind = panel["type"]
        found += [f"{panel['title']}: {e}" for e in errors(f"{kind} options", panel["options"])]
        if custom := panel["fieldConfig"]["defaults"].get("custom", {}):
            found += [f"{panel['title']}: {e}" for e in errors(f"{kind} custom", custom)]
        for one in panel["fieldConfig"]["overrides"]:
            own = {p["id"].removeprefix("custom."): p["value"] for p in one["properties"] if p["id"].startswith("cus")}
            if own:
                found += [f"{panel['title']}: {e}" for e in errors(f"{kind} custom", custom | own)]
    return found


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Json:
    found: Json = json.loads(request.param.read_text())
    assert found["uid"] == request.param.stem
    return found


def test_there_are_four() -> None:
    assert [p.stem for p in DASHBOARDS] == [f"tailguard-{n}" for n in ("decisions", "model", "service", "tail")]


def test_the_committed_json_is_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "make", tmp_path], check=True, capture_output=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in DASHBOARDS}


def test_grafanas_schema(dashboard: Json) -> None:
    assert faults(dashboard) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(colour="red"),
        lambda d: d["panels"][0].update(tpye="stat"),
        lambda d: d["panels"][0]["gridPos"].pop("w"),
        lambda d: d["panels"][0]["options"].update(graphMode="wavy"),
        lambda d: d["panels"][0]["fieldConfig"]["defaults"].update(units="s"),
        lambda d: d["templating"]["list"].append({"name": "x"}),
    ],
)
def test_the_schema_catches_what_is_wrong(spoil: Any) -> None:
    found = copy.deepcopy(json.loads(DASHBOARDS[0].read_text()))
    spoil(found)
    assert faults(found) != []


def test_every_panel_has_a_unit_a_description_and_the_one_data_source(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        for asker in (panel, *panel["targets"]):
            assert asker["datasource"] == {"type": "prometheus", "uid": UID}, panel["title"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert set(target) <= QUERY_FIELDS, panel["title"]
            assert target["expr"]
            assert target["refId"]
    titles = [p["title"] for p in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    for unit in re.findall(r'"unit": "(\w+)"', json.dumps(dashboard)):
        assert unit in UNITS


def test_the_uid_is_that_of_the_provisioned_data_source() -> None:
    assert f"uid: {UID}" in (GRAFANA / "provisioning" / "datasources" / "datasources.yml").read_text()


def test_panels_do_not_overlap_and_fit(dashboard: Json) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells


def test_every_variable_used_is_there(dashboard: Json) -> None:
    known = {v["name"] for v in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", json.dumps([p["targets"] for p in dashboard["panels"]])))
    assert used - BUILT_IN <= known
    if dashboard["uid"] in ("tailguard-decisions", "tailguard-tail", "tailguard-model"):
        assert known == {"model", "version", "group"}
        assert known <= used
