"""Panels of Grafana and their queries as Python values; what every one of them has in common is said here."""

from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "tailguard-prometheus"}
COLUMNS = 24
CLASSIFY = 'route=~"/classify.*|/v1/image-classification|/v2/models/.*infer"'
MODEL = 'model=~"$model",version=~"$version"'
GROUP = MODEL + ',group=~"$group"'
LINES = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "auto", "spanNulls": False}
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
NO_LABELS = -1  # what the queries of accuracy give without feedback, as 0% would be a lie


def query(expr: str, legend: str = "", **more: Any) -> Json:
    """One target; its refId is given by the panel."""
    return {"datasource": DATASOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend, "range": True} | more


def now(expr: str, legend: str = "", **more: Any) -> Json:
    """A target that asks for one moment only."""
    return query(expr, legend, **more) | {"range": False, "instant": True}


def or_zero(expr: str, **labels: str) -> str:
    """The expression, or one zero while it has no series: a counter with labels begins with its first event."""
    zero = "vector(0)"
    for name, value in labels.items():
        zero = f'label_replace({zero}, "{name}", "{value}", "", "")'
    return f"({expr}) or on () {zero}"


def in_force(increase: str) -> str:
    """Of decisions or feedback: those of the operating point and scope in force."""
    return f"({increase} and on (instance, model, version, operating_point, scope) tailguard_model_info)"


def share(part: str, whole: str, least: str = "1") -> str:
    """A ratio that is 0, never NaN, where there is nothing."""
    return f"{part} / clamp_min({whole}, {least})"


def panel(
    kind: str, title: str, description: str, unit: str, *targets: Json, size: tuple[int, int], **more: Any
) -> Json:
    """`size`: width in 24ths and height in rows. `more`: options, custom, defaults, overrides, transformations."""
    defaults: Json = {"unit": unit, "color": {"mode": more.get("color", "palette-classic")}}
    if custom := more.get("custom"):
        defaults["custom"] = custom
    found: Json = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": defaults | more.get("defaults", {}), "overrides": more.get("overrides", [])},
        "options": more.get("options", {}),
        "targets": [{"refId": chr(ord("A") + i)} | target for i, target in enumerate(targets)],
    }
    if transformations := more.get("transformations"):
        found["transformations"] = transformations
    return found


def lines(title: str, description: str, unit: str, *targets: Json, width: int = 12, **more: Any) -> Json:
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom = LINES | more.pop("custom", {})
    return panel(
        "timeseries", title, description, unit, *targets, size=(width, 8), options=options, custom=custom, **more
    )


def stat(title: str, description: str, unit: str, *targets: Json, width: int = 4, **more: Any) -> Json:
    options = {
        "reduceOptions": LAST,
        "colorMode": "value",
        "graphMode": more.pop("graph", "area"),
        "textMode": more.pop("text", "auto"),
        "justifyMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    return panel("stat", title, description, unit, *targets, size=(width, 4), options=options, **more)


def bars(title: str, description: str, unit: str, *targets: Json, width: int = 12, **more: Any) -> Json:
    """Horizontal bars of the last values, in the order of the query."""
    options = {
        "reduceOptions": LAST,
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "showUnfilled": True,
        "sizing": "auto",
        "namePlacement": "left",
        "minVizWidth": 8,
        "minVizHeight": 12,
        "maxVizHeight": 40,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
    }
    defaults = {"min": 0} | more.pop("defaults", {})
    size = (width, more.pop("height", 8))
    return panel("bargauge", title, description, unit, *targets, size=size, options=options, defaults=defaults, **more)


def columns(title: str, description: str, unit: str, *targets: Json, x: str, width: int = 12, **more: Any) -> Json:
    """Vertical bars, one series a target, joined by the label `x`."""
    options = {
        "xField": x,
        "orientation": "auto",
        "stacking": "none",
        "showValue": "never",
        "groupWidth": 0.8,
        "barWidth": 0.95,
        "barRadius": 0,
        "fullHighlight": False,
        "xTickLabelRotation": -45,
        "xTickLabelMaxLength": 12,
        "xTickLabelSpacing": 0,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "none"},
    }
    custom = {"fillOpacity": 70, "lineWidth": 1}
    return panel(
        "barchart", title, description, unit, *targets, size=(width, 8), options=options, custom=custom, **more
    )


def heat(title: str, description: str, unit: str, target: Json, width: int = 12) -> Json:
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "short"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "scale": "exponential",
            "exponent": 0.5,
            "fill": "dark-orange",
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    return panel("heatmap", title, description, unit, target | {"format": "heatmap"}, size=(width, 8), options=options)


def table(title: str, description: str, unit: str, *targets: Json, height: int = 10, **more: Any) -> Json:
    asked = [target | {"format": "table"} for target in targets]
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    options = {"frameIndex": 0, "showHeader": True, "cellHeight": "sm", "sortBy": more.pop("sort_by", [])}
    return panel(
        "table", title, description, unit, *asked, size=(COLUMNS, height), options=options, custom=custom, **more
    )


def override(name: str, **properties: Any) -> Json:
    """Fields called `name`, or matching it where it is /a regex/, in another dress."""
    matcher = "byRegexp" if name.startswith("/") else "byName"
    return {
        "matcher": {"id": matcher, "options": name},
        "properties": [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()],
    }


def dashed(name: str) -> Json:
    return override(
        name, custom__lineStyle={"fill": "dash", "dash": [10, 10]}, custom__fillOpacity=0, custom__showPoints="never"
    )


def steps(*found: tuple[str, float | None]) -> Json:
    """Thresholds: a colour from each value on, None: from below everything."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in found]}
