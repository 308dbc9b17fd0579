"""The dashboard: its queries against a real scrape, and what Grafana needs to import it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import serving

DASHBOARD: dict[str, Any] = json.loads(Path("deploy/grafana.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds to every series."""


@pytest.fixture(scope="module")
def series(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of a scrape with their labels."""
    found: dict[str, set[str]] = defaultdict(set)
    with serving(tiny_model, tmp_path_factory.mktemp("dashboard") / "log") as server:
        httpx.post(f"{server.url}/embed", json={"inputs": "a"}).raise_for_status()
        page = httpx.get(f"{server.url}/metrics").text
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] |= {*sample.labels, *OF_PROMETHEUS}
    return found


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Return every metric of a query, with the labels that it is selected or grouped by."""
    found: list[tuple[str, set[str]]] = []
    grouped: list[set[str]] = [set()]

    def enter(node: object) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            labels = node.modifier.labels if node.modifier else []
            grouped.append({*grouped[-1], *labels})
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            found.append((node.name, {*grouped[-1], *(matcher.name for matcher in node.matchers.matchers)}))

    def leave(node: object) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            grouped.pop()

    promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "5m")), enter, leave)
    return found


def test_a_query_is_read_as_prometheus_would() -> None:
    query = 'histogram_quantile(0.9, sum by (le) (rate(a_bucket{x="1"}[$__rate_interval]))) / avg(b{y!="2"})'
    assert selectors(query) == [("a_bucket", {"le", "x"}), ("b", {"y"})]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_queries_name_metrics_and_labels_that_the_server_has(
    panel: dict[str, Any], series: dict[str, set[str]]
) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        for name, labels in selectors(target["expr"]):
            assert name in series, f"the server has no metric {name}"
            assert labels <= series[name], f"{name} has no labels {labels - series[name]}"
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert all(shown <= series[name] for name, _ in selectors(target["expr"]))
        if "by (" in target["expr"] and "le" not in shown:
            assert all(shown <= labels for _, labels in selectors(target["expr"]))


def test_every_metric_of_ours_is_shown(series: dict[str, set[str]]) -> None:
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    shown = {name for query in queries for name, _ in selectors(query)}

    def family(name: str) -> str:
        return re.sub("_(bucket|sum|count)$", "", name)

    ours = {family(name) for name in series if name.startswith("e5onnx_")}
    assert ours == {family(name) for name in shown if name.startswith("e5onnx_")}


def test_grafana_can_import_it() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert [variables["datasource"][key] for key in ("type", "query")] == ["datasource", "prometheus"]
    source = {"type": "prometheus", "uid": "${datasource}"}  # not the uid of somebody's own server
    assert variables["instance"]["datasource"] == source
    for panel in PANELS:
        targets = panel["targets"]
        assert all(each["datasource"] == source for each in (panel, *targets))
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all("$" not in re.sub(r"\$(instance|__rate_interval)\b", "", target["expr"]) for target in targets)
        assert panel["description"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
