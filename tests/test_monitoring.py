"""What people on call look at: the dashboard, the alerts and docs/operations.md speak of metrics that the services
really export, and the alerts fire when they should. Where `promtool` is installed (Debian: `prometheus`), it reads every
query and runs the cases of tests/monitoring/alerts.yaml.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.operations_page import rows
from tests.services import ECHO, running_services
from tools.embedded_server import EmbeddedServer

ROOT = Path(__file__).resolve().parents[1]
MONITORING = ROOT / "k8s/components/monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GROUPS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
CASES: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/monitoring/alerts.yaml").read_text())

#: What Prometheus adds to each series; namespace only in Kubernetes.
TARGET_LABELS = {"job", "instance", "namespace"}
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
WORDS = {
    "and",
    "or",
    "unless",
    "on",
    "ignoring",
    "by",
    "without",
    "group_left",
    "group_right",
    "bool",
    "offset",
}
AGGREGATIONS = {"sum", "max", "min", "avg", "count"}
NAME = re.compile(r"[a-zA-Z_:][\w:]*")

Labels = dict[str, set[str]]


class Exported(NamedTuple):
    """What the services export."""

    series: Labels  # name of a series → its labels
    types: dict[str, str]  # name of a metric → its type
    services: dict[str, str]  # name of a metric → who exports it
    values: dict[str, Labels]  # name of a metric → its labels, each with the values it has had


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Scraped from a gateway and a processor that have made a prediction, so that every label has been used."""
    found = Exported({}, {}, {}, {})
    folder = tmp_path_factory.mktemp("monitoring")
    with (
        EmbeddedServer(folder / "server", aof=False) as server,
        running_services(server.url, folder, partitions=1) as services,
    ):
        gateway, processor = services.gateway(), services.processor(ECHO)
        assert httpx2.post(f"{gateway.url}/predict", json={"input": 1}).status_code == 200
        for service in (gateway, processor):
            code, body = service.get("/metrics")
            assert code == 200
            for family in text_string_to_metric_families(body.decode()):
                name = family.name + ("_total" if family.type == "counter" else "")
                found.types[name] = family.type
                found.services[name] = service.name
                values = found.values.setdefault(name, {})
                for sample in family.samples:
                    for label in sample.labels.keys() - {"le"}:
                        values.setdefault(label, set()).add(sample.labels[label])
                for suffix in SUFFIXES[family.type]:
                    more = {"le"} if suffix == "_bucket" else set()
                    found.series.setdefault(family.name + suffix, set()).update(values, more)
    return found


# -- reading PromQL: no parser, only what these checks need. promtool knows whether it is right as a whole.


def without_variables(query: str) -> str:
    """The query as Grafana sends it, for everything."""
    return query.replace("$__rate_interval", "5m").replace("$namespace", ".*")


def queries() -> dict[str, str]:
    """Where it stands → the query."""
    found = {f"alert {name}": alert["expr"] for name, alert in ALERTS.items()}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"panel {panel['title']!r} {target['refId']}"] = without_variables(target["expr"])
    return found


QUERIES = queries()


def masked(query: str) -> str:
    """The query with its strings, braces and windows made blank, so that only names and structure are left."""
    for what in (r'"[^"]*"', r"\{[^}]*\}", r"\[[^\]]*\]"):
        query = re.sub(what, lambda found: " " * len(found.group()), query)
    return query


def series_in(query: str) -> Iterator[re.Match[str]]:
    """The names of series. What stands before a `(` is a function, what stands in `by (...)` a label."""
    text = re.sub(
        r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
        lambda found: " " * len(found.group()),
        masked(query),
    )
    for found in NAME.finditer(text):
        if found.group() not in WORDS and not re.match(r"\s*\(", text[found.end() :]):
            yield found


def inside(query: str, begin: int) -> str:
    """What the parenthesis that opens at or behind `begin` holds."""
    begin = query.index("(", begin) + 1
    depth = 1
    for at, character in enumerate(masked(query)[begin:], begin):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return query[begin:at]
    raise AssertionError(f"a parenthesis is not closed in {query}")


def unknown(query: str, series: Labels) -> list[str]:
    """The metrics and labels in it that no service exports."""
    found = []
    for name in series_in(query):
        if name.group() not in series:
            found.append(name.group())
            continue
        if matchers := re.match(r"\{([^}]*)\}", query[name.end() :]):
            labels = set(re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', "", matchers[1])))
            found += sorted(labels - series[name.group()] - TARGET_LABELS)
    for clause in re.finditer(r"\b(?:by|without)\s*\(([^)]*)\)", query):
        body = inside(query, clause.end())
        known = {label for name in series_in(body) for label in series.get(name.group(), set())}
        found += sorted({label.strip() for label in clause[1].split(",")} - known - TARGET_LABELS)
    return found


def innermost_aggregations(query: str, prefix: str) -> Iterator[str]:
    """For each series that begins with `prefix`: the aggregation right around it, or its own name without one."""
    text = masked(query)
    for name in series_in(query):
        if not name.group().startswith(prefix):
            continue
        innermost, depth = name.group(), 0
        for at in range(name.start() - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(text[at], 0)
            if depth < 0:
                depth = 0
                before = re.search(r"(\w+)(?:\s+by\s*\([^)]*\))?\s*$", text[:at])
                if before and before[1] in AGGREGATIONS:
                    innermost = before[1]
                    break
        yield innermost


SERIES: Labels = {"up": set(), "a_total": {"x"}, "h_bucket": {"le", "x"}, "foretell_queue_waiting": set()}


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ('sum by (x, namespace) (rate(a_total{x=~"}b(|c"}[5m])) / count(up{job="a"})', []),
        ("sum by (x) (rate(b_total[5m]))", ["b_total", "x"]),
        ('a_total{y="x"} and on (job, instance) up', ["y"]),
        ("sum by (x) (a_total) + max by (x) (up)", ["x"]),
        ("histogram_quantile(0.5, sum by (le) (rate(h_bucket[5m])))", []),
        ("histogram_quantile(0.5, sum by (le) (rate(a_total[5m])))", ["le"]),
    ],
)
def test_what_does_not_exist_would_be_found(query: str, wrong: list[str]) -> None:
    assert unknown(query, SERIES) == wrong


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sum(max by (namespace) (rate(foretell_queue_waiting[5m])))", ["max"]),
        ("max(up) + sum by (namespace) (foretell_queue_waiting)", ["sum"]),
        ("foretell_queue_waiting > max(foretell_queue_waiting)", ["foretell_queue_waiting", "max"]),
    ],
)
def test_a_sum_over_gateways_would_be_found(query: str, found: list[str]) -> None:
    assert list(innermost_aggregations(query, "foretell_queue_")) == found


# -- the dashboard and the alerts


def test_every_query_asks_for_what_the_services_export(exported: Exported) -> None:
    assert all(list(series_in(query)) for query in QUERIES.values())
    wrong = {where: unknown(query, exported.series) for where, query in QUERIES.items()}
    assert not {where: names for where, names in wrong.items() if names}


def test_what_every_gateway_says_alike_is_never_summed() -> None:
    around = {
        where: set(innermost_aggregations(query, "foretell_queue_")) for where, query in QUERIES.items()
    }
    assert not {where: found for where, found in around.items() if found - {"max"}}


def test_counters_are_asked_for_their_growth() -> None:
    for where, query in QUERIES.items():
        for name in series_in(query):
            if re.search("_(total|bucket|sum|count)$", name.group()):
                assert re.search(r"\b(rate|increase|resets)\(\s*$", query[: name.start()]), (
                    where,
                    name.group(),
                )


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert(exported: Exported) -> None:
    shown = {name.group() for query in QUERIES.values() for name in series_in(query)}
    ours = {name for name in exported.types if name.startswith(("foretell_", "http_"))}
    unused = {name for name in ours if not any(series.startswith(name) for series in shown)}
    assert unused == {"foretell_queue_dead"}  # nobody has to act on it: given up does it


def test_every_panel_says_what_good_looks_like() -> None:
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert "Good: " in panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_panels_stand_in_rows_and_none_covers_another() -> None:
    assert DASHBOARD["panels"][0]["type"] == "row"
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = set(product(columns, range(place["y"], place["y"] + place["h"])))
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_is_and_what_to_do() -> None:
    for name, alert in ALERTS.items():
        assert alert["labels"].keys() == {"severity", "owner"}, name
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        assert alert["labels"]["owner"] in ("platform", "model"), name
        assert alert["annotations"].keys() == {"summary", "description", "action"}, name


# -- docs/operations.md


def test_every_alert_is_documented_with_the_same_action_and_no_other_is() -> None:
    documented = {name: (severity, action) for _, (name, severity, _, action) in rows("Alerts")}
    assert documented == {
        name: (alert["labels"]["severity"], alert["annotations"]["action"]) for name, alert in ALERTS.items()
    }


def test_every_metric_is_documented_with_type_and_labels_and_no_other_is(exported: Exported) -> None:
    documented, values = {}, {}
    for heading, (name, kind, labels, *_) in rows("Metrics"):
        names, _, listed = labels.partition(":")
        service = "gateway" if "gateway" in heading else "processor"
        documented[name.strip("`")] = (service, kind, set(re.findall(r"`(\w+)`", names)))
        values[name.strip("`")] = set(re.findall(r"`(\w+)`", listed))
    ours = [name for name in exported.types if name.startswith(("foretell_", "http_"))]
    assert documented == {
        name: (exported.services[name], exported.types[name], set(exported.values[name])) for name in ours
    }
    # the values that are listed are there from the start: of a series that begins at 1, `increase` misses the first
    for name in filter(values.get, values):
        assert values[name] == set().union(*exported.values[name].values()), name


# -- promtool


def promtool(folder: Path, *arguments: str) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def write(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=1000))


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    asked = [{"record": f"panel:{at}", "expr": query} for at, query in enumerate(QUERIES.values())]
    write(tmp_path / "rules.yaml", {"groups": [*GROUPS, {"name": "dashboard", "rules": asked}]})
    promtool(tmp_path, "check", "rules", "--lint-fatal", "rules.yaml")


@pytest.mark.slow
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for check in (check for case in CASES for check in case["alert_rule_test"]):
        rule = ALERTS[check["alertname"]]
        for alert in check.get("exp_alerts", ()):
            alert["exp_labels"] = rule["labels"] | alert.get("exp_labels", {})
            alert["exp_annotations"] = rule["annotations"] | alert["exp_annotations"]
    write(tmp_path / "rules.yaml", {"groups": GROUPS})
    write(tmp_path / "cases.yaml", {"rule_files": ["rules.yaml"], "tests": CASES})
    promtool(tmp_path, "test", "rules", "cases.yaml")


def test_every_alert_fires_in_one_case_and_is_silent_in_another() -> None:
    checks = [check for case in CASES for check in case["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == ALERTS.keys()
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == ALERTS.keys()


def test_cases_use_series_that_the_services_export(exported: Exported) -> None:
    for series in (entry["series"] for case in CASES for entry in case["input_series"]):
        assert not unknown(series, exported.series | {"up": set()}), series
