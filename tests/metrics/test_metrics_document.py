"""METRICS.md says what there is, and the shipped alerts and dashboard name nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api import BY_NAME, errors
from kmsd.metrics.families import FAMILIES, Kind
from kmsd.metrics.meter import CANCELED, OK, REQUEST_BOUNDS, TOKEN_BOUNDS

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "kmsd" / "metrics" / "METRICS.md"
ALERTS = ROOT / "systemd" / "monitoring" / "alerts.yml"
DASHBOARD = ROOT / "systemd" / "monitoring" / "grafana-dashboard.json"

# What Prometheus and node_exporter add to what they collect.
ADDED_LABELS = {"instance", "job"}
# The one metric of somebody else's, and its label.
FOREIGN = {"node_textfile_mtime_seconds": {"file", *ADDED_LABELS}}
# Of PromQL, what stands where a metric's name could.
_WORDS = {
    "and", "or", "unless", "on", "by", "offset", "sum", "rate", "increase", "changes", "absent", "time",
    "histogram_quantile", "label_values",
}  # fmt: skip


def series() -> dict[str, set[str]]:
    """The labels of each series there can be."""
    found = dict(FOREIGN)
    for family in FAMILIES:
        labels = {*family.labels, *ADDED_LABELS}
        if family.kind is Kind.HISTOGRAM:
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
            found[f"{family.name}_bucket"] = {*labels, "le"}
        else:
            found[family.name] = labels
    return found


def codes() -> set[str]:
    """Every outcome of a request."""
    classes, found = [errors.KmsError], {OK, CANCELED}
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        found.add(one.code)
    return found


def entries(text: str) -> list[dict[str, str]]:
    """Each rule of the alerts' file, whose form is this simple subset of YAML and nothing more."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[:3] == ["groups:", "  - name: kmsd", "    rules:"]
    rules: list[dict[str, str]] = []
    for line in lines[3:]:
        match = re.fullmatch(r"( {6}- | {8}| {10})(\w+):(?: (?:'([^']*)'|([\w.]+)))?", line)
        assert match, line
        indent, name, quoted, plain = match.groups()
        if indent.endswith("- "):
            assert name == "alert"
            rules.append({})
        value = quoted if quoted is not None else plain
        assert (value is None) is (name in {"labels", "annotations"}), line
        assert name not in rules[-1], line
        rules[-1][name] = value or ""
    return rules


def names_in(expression: str) -> tuple[set[str], list[tuple[str, str, str]]]:
    """The metrics of an expression, and its matchers: metric, label, and value."""
    matchers = []
    for metric, inside in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', inside):
            matchers.append((metric, label, value))
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    # Labels: those that are grouped by, and of Grafana's own function the one that is listed.
    bare = re.sub(r"\b(?:by|on)\s*\([^)]*\)|(?<=, )instance(?=\))", "", bare)
    found = set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare))
    return {name for name in found if name not in _WORDS}, matchers


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups by or matches on."""
    return {
        label.strip() for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for label in group.split(",")
    }


def panels() -> list[dict[str, Any]]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    found: list[dict[str, Any]] = document["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in entries(ALERTS.read_text()):
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


def test_the_document_lists_every_metric() -> None:
    """Name, kind, labels and meaning, in the order of the table in the code."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)

    assert rows == [
        (family.name, str(family.kind), ", ".join(f"`{label}`" for label in family.labels), family.meaning)
        for family in FAMILIES
    ]


def test_the_document_tells_the_bounds_of_buckets() -> None:
    """They are what quantiles can be told by."""
    text = " ".join(DOCUMENT.read_text().split())

    for bounds in (REQUEST_BOUNDS, TOKEN_BOUNDS):
        assert ", ".join(f"{bound:f}".rstrip("0").rstrip(".") for bound in bounds) in text


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_an_expression_names_only_what_there_is(place: str, expression: str) -> None:
    """Metrics, their labels, and of outcomes and operations also the values."""
    known, outcomes = series(), codes()

    names, matchers = names_in(expression)

    assert names
    assert names <= set(known)
    for metric, label, value in matchers:
        assert label in known[metric]
        values = [] if "$" in value else value.split("|")
        if label == "operation":
            assert set(values) <= set(BY_NAME)
        if (metric, label) == ("kmsd_requests_total", "outcome"):
            assert set(values) <= outcomes
    assert grouped(expression) <= set().union(*(known[name] for name in names))


def test_alerts_say_what_happened_and_what_to_do() -> None:
    """Each has a name of its own, a severity, and words that name only labels there are."""
    rules = entries(ALERTS.read_text())

    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "severity", "annotations", "summary", "description"}
        assert rule["severity"] in {"critical", "warning", "info"}
        assert re.fullmatch(r"\d+[mhd]", rule.get("for", "1m"))
        labels = set().union(*(series()[name] for name in names_in(rule["expr"])[0]))
        assert set(re.findall(r"\$labels\.(\w+)", rule["summary"] + rule["description"])) <= labels


@pytest.mark.parametrize(
    "said",
    [
        "kmsd_up", "kmsd_sealed", "kmsd_audit_lag_seconds", "kmsd_audit_refusals_total", "kmsd_key_deletion_seconds",
        "kmsd_pending_deletion_uses_total", "kmsd_token_jobs_total", "kmsd_backup_age_seconds", "kmsd_clock_in_doubt",
        "kmsd_housekeeping_lag_seconds", "kmsd_events_current", "kmsd_secret_memory_used_bytes", "kmsd_store_readable",
    ],
)  # fmt: skip
def test_there_is_an_alert_on_what_must_not_be_missed(said: str) -> None:
    """By name, so that none goes lost when expressions change."""
    assert any(said in names_in(rule["expr"])[0] for rule in entries(ALERTS.read_text()))


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Panels of known kinds that do not lie on each other, with one data source that is asked for."""
    document = json.loads(DASHBOARD.read_text())

    assert [variable["name"] for variable in document["templating"]["list"]] == ["datasource", "instance"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert all(source["datasource"]["uid"] == "${datasource}" for source in (panel, *panel["targets"]))


def test_every_metric_is_on_the_dashboard() -> None:
    """Whoever looks for one finds it."""
    shown = set().union(*(names_in(target["expr"])[0] for panel in panels() for target in panel["targets"]))

    assert {family.name for family in FAMILIES if not any(name.startswith(family.name) for name in shown)} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say_about_the_alerts() -> None:
    """Where Prometheus is installed."""
    told = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)

    assert told.returncode == 0, told.stderr
