"""Every filter of rules and dashboards by route, against the routes of the application."""

import json
import re
from pathlib import Path

import pytest
import yaml
from starlette.routing import Route

from service.web.access import role_of
from service.web.app import ROUTERS
from tests.live import ROOT

RULES = sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
FILTER = re.compile(r'route=~"([^"]*)"')  # Prometheus matches the whole of a label
DECIDES_NOTHING = {"/embed"}  # and yet takes images, under the same role


def expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        return [target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]]
    return [rule["expr"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def filters() -> set[str]:
    return {found for path in (*RULES, *DASHBOARDS) for expr in expressions(path) for found in FILTER.findall(expr)}


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """The templates that the metrics have as `route`, of all that is posted."""
    every = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    return {route.path for route in every if "POST" in (route.methods or ())}


def test_every_filter_by_route_has_the_routes_that_classify_and_no_other(routes: set[str]) -> None:
    classifying = {r for r in routes if role_of(r) == "classify"} - DECIDES_NOTHING
    assert {"/classify", "/v1/image-classification", "/v2/models/{name}/infer"} < classifying
    assert routes >= DECIDES_NOTHING
    assert filters()
    for one in filters():
        assert {route for route in routes if re.fullmatch(one, route)} == classifying, one


def test_rules_and_dashboards_filter_alike() -> None:
    assert len(filters()) == 1
    assert all(any(FILTER.search(expr) for path in kind for expr in expressions(path)) for kind in (RULES, DASHBOARDS))
