"""A dashboard of Grafana as Python values: its variables, and panels laid out in lines."""

from panels import COLUMNS, DATASOURCE, MODEL, Json

GROUPS = "head|middle.*|tail|balanced|many|medium|few"  # not "all" and "none"; the last three are those of format 1


def variable(name: str, label: str, metric: str, all_value: str) -> Json:
    asked = f"label_values({metric}, {name})"
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"qryType": 1, "query": asked, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": all_value,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


VARIABLES = (
    variable("model", "Model", "tailguard_model_info", ".*"),
    variable("version", "Version", 'tailguard_model_info{model=~"$model"}', ".*"),
    variable("group", "Group", f"tailguard_threshold{{{MODEL}}}", GROUPS),
)


def dashboard(name: str, description: str, variables: tuple[Json, ...], panels: list[Json]) -> Json:
    """The panels, numbered and laid out from left to right; a line is as high as its highest panel."""
    x = y = height = 0
    for number, placed in enumerate(panels, 1):
        grid = placed["gridPos"]
        if x + grid["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        placed["id"] = number
        grid |= {"x": x, "y": y}
        x, height = x + grid["w"], max(height, grid["h"])
    return {
        "uid": f"tailguard-{name.lower()}",
        "title": f"TailGuard / {name}",
        "description": description,
        "tags": ["tailguard"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "annotations": {"list": []},
        "links": [LINK],
        "templating": {"list": list(variables)},
        "panels": panels,
    }


LINK = {
    "asDropdown": False,
    "icon": "external link",
    "includeVars": True,
    "keepTime": True,
    "tags": ["tailguard"],
    "targetBlank": False,
    "title": "TailGuard",
    "tooltip": "",
    "type": "dashboards",
    "url": "",
}
