"""The alert rules and the dashboard use metrics and labels that exist."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS, DASHBOARD = ROOT / "config/prometheus-alerts.yml", ROOT / "config/grafana-dashboard.json"
ROW = re.compile(r"^\| `(payagent_\w+)(?:\{([\w,]+)\})?`", re.MULTILINE)
SELECTOR = re.compile(r"\b(payagent_\w+)(?:\{([^}]*)\})?")


def labels_by_metric() -> dict[str, set[str]]:
    """From the reference page, which a test compares with what the daemon tells."""
    page = (ROOT / "docs/reference/metrics.md").read_text()
    return {name: set(labels.split(",")) - {""} for name, labels in ROW.findall(page)}


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, object]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def require_known(expression: str, labels: set[str]) -> None:
    """The expression asks metrics that exist for labels that they have; so does the text that shows the result."""
    known = labels_by_metric()
    used = SELECTOR.findall(expression)
    for name, matchers in used:
        assert name in known, expression
        assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= known[name], expression
    assert labels <= set().union(*(known[name] for name, _ in used)), expression


def test_the_alert_rules_use_existing_metrics_and_labels() -> None:
    for rule in rules():
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule)))
        require_known(rule["expr"].replace('up{job="payagent"}', ""), shown)


def test_the_dashboard_uses_existing_metrics_and_labels() -> None:
    for panel in panels():
        for target in panel["targets"]:
            require_known(target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])))


def test_no_two_panels_of_the_dashboard_overlap_or_share_an_id() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_page_that_an_alert_names_exists() -> None:
    named = re.findall(r"docs/[\w/-]+\.md", ALERTS.read_text())
    assert named
    assert [page for page in named if not (ROOT / page).exists()] == []
