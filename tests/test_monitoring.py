"""The monitoring profile of the stand: what is started, how it is guarded, and that the dashboard shows what exists."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import Expr, VectorSelector

from tests.conftest import Gateway
from tests.readme import OPERATIONS, ROOT, section
from tests.scripted_vllm import ScriptedVLLM, refusal
from tests.test_deploy import EXAMPLE, service

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
SERVICES = ["prometheus", "grafana"]

# What the gateway's /metrics holds: name, labels.
COUNTERS = {
    "turns_total": {"outcome"},
    "prompt_tokens_total": set(),
    "completion_tokens_total": set(),
    "cached_tokens_total": set(),
    "dropped_pairs_total": set(),
    "count_mismatches_total": set(),
    "upstream_errors_total": {"kind"},
}
HISTOGRAMS = ["time_to_first_token_seconds", "inter_token_seconds", "turn_seconds", "added_seconds", "wait_seconds"]
GAUGES = ["sessions", "turns_in_flight", "turns_waiting", "vllm_up", "vllm_stalled", "store_up"]
GATEWAY_METRICS: dict[str, set[str]] = {
    **{f"chat_gateway_{name}": labels for name, labels in COUNTERS.items()},
    **{f"chat_gateway_{name}_bucket": {"le"} for name in HISTOGRAMS},
    **{f"chat_gateway_{name}": set() for name in GAUGES},
}
# Of both supported versions; tests/e2e looks whether the real one has them.
VLLM_METRICS = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_bucket",
}
# Of every Python program with prometheus-client, and Prometheus's own.
PROCESS_METRICS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
OWN_METRICS = {"ALERTS", "up"}

# As Grafana does.
VARIABLES = {"$__rate_interval": "1m"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def dashboard() -> Any:
    [path] = (GRAFANA / "dashboards").iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Where it stands: expression, of the dashboard."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            found[f"{panel['title']}: {target['legendFormat']}"] = expression
    return found


def rules() -> list[Any]:
    [group] = load(PROMETHEUS / "alerts.yaml")["groups"]
    return list(group["rules"])


def expressions() -> dict[str, str]:
    return {**queries(), **{rule["alert"]: rule["expr"] for rule in rules()}}


def selectors(expression: str) -> Iterator[VectorSelector]:
    """Every place in an expression where series are taken by name."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


# --- what there is to see ---


def test_the_gateway_has_what_is_listed(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    session = gateway.open()
    session.events("а")
    vllm.scripts.append(refusal(500, "no"))
    session.refused(502, "upstream_error", "/chat", message="а")
    held = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(gateway.http.get("/metrics").text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_sum", "_count"))
    }
    assert {name: labels for name, labels in held.items() if name.startswith("chat_gateway_")} == GATEWAY_METRICS
    assert held.keys() >= PROCESS_METRICS


# --- the services ---


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_started_only_when_asked_for(name: str) -> None:
    assert service(name)["profiles"] == ["monitoring"]
    for other in ("gateway", "vllm"):
        definition = service(other)
        assert "profiles" not in definition
        assert name not in definition.get("depends_on", [])
        assert "monitoring" not in definition["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_and_not_root(name: str) -> None:
    definition = service(name)
    assert definition["mem_limit"] == "1g"
    assert "user" not in definition, "their images do not run as root"


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_the_official_one_of_an_exact_version(name: str) -> None:
    assert re.fullmatch(r"(prom/prometheus:v|grafana/grafana:)\d+\.\d+\.\d+", service(name)["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_shipped_and_cannot_be_changed(name: str) -> None:
    for mount in service(name)["volumes"]:
        if isinstance(mount, str):
            assert mount == "prometheus:/prometheus"
        else:
            assert mount["read_only"] is True
            assert mount["bind"] == {"create_host_path": False}
            assert any((ROOT / mount["source"]).iterdir())


def test_grafana_can_write_only_what_is_not_kept() -> None:
    """Docker gives a tmpfs the rights of the folder under it, whatever `mode=` says, but it does heed the owner."""
    assert service("grafana")["tmpfs"] == ["/tmp", "/var/lib/grafana:uid=472,size=256m"]


def test_grafana_is_open_to_this_machine_only_and_prometheus_to_nobody() -> None:
    assert service("grafana")["ports"] == ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"]
    assert "ports" not in service("prometheus")


def test_prometheus_reaches_vllm_and_nothing_outside() -> None:
    networks = load(EXAMPLE)["networks"]
    assert service("prometheus")["networks"] == ["backend", "monitoring"]
    assert all(networks[name]["internal"] for name in service("prometheus")["networks"])
    assert "backend" not in service("grafana")["networks"], "vLLM's port is no business of hers"


def test_the_history_is_bounded() -> None:
    command = " ".join(service("prometheus")["command"])
    assert "--storage.tsdb.retention.time=" in command
    assert "--storage.tsdb.retention.size=" in command
    assert not re.search(r"--web\.enable-(?:admin-api|lifecycle|remote-write-receiver)", command)


def test_nobody_can_sign_in_to_grafana() -> None:
    environment = service("grafana")["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", "else it is admin/admin"
    assert (environment["GF_AUTH_DISABLE_LOGIN_FORM"], environment["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")
    assert (environment["GF_AUTH_ANONYMOUS_ENABLED"], environment["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")


def test_grafana_asks_nothing_of_the_internet() -> None:
    environment = service("grafana")["environment"]
    switched_off = {name.removeprefix("GF_") for name, value in environment.items() if value == "false"}
    assert switched_off >= {
        "ANALYTICS_REPORTING_ENABLED",
        "ANALYTICS_CHECK_FOR_UPDATES",
        "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
        "NEWS_NEWS_FEED_ENABLED",
        "SNAPSHOTS_EXTERNAL_ENABLED",
        "PLUGINS_PREINSTALL_AUTO_UPDATE",
        "PLUGINS_PLUGIN_ADMIN_ENABLED",
    }
    for name in ("SECURITY_DISABLE_GRAVATAR", "PLUGINS_PREINSTALL_DISABLED", "PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED"):
        assert environment[f"GF_{name}"] == "true"
    assert "http" not in json.dumps(dashboard())


# --- what is collected ---


def test_prometheus_asks_the_gateway_and_vllm_where_they_listen() -> None:
    config = load(PROMETHEUS / "prometheus.yaml")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"gateway": ["gateway:8080"], "vllm": ["vllm:8000"]}
    assert "--port 8000" in service("vllm")["command"]
    assert service("gateway")["ports"][0].endswith(":8080")
    assert all((PROMETHEUS / name).is_file() for name in config["rule_files"])
    assert f"--config.file=/etc/prometheus/{(PROMETHEUS / 'prometheus.yaml').name}" in service("prometheus")["command"]


def test_the_collecting_does_not_fill_the_log_of_vllm() -> None:
    assert "--disable-access-log-for-endpoints /health,/metrics" in service("vllm")["command"]


def test_every_expression_asks_for_what_exists() -> None:
    known = {*GATEWAY_METRICS, *VLLM_METRICS, *PROCESS_METRICS, *OWN_METRICS}
    for where, expression in expressions().items():
        found = list(selectors(expression))
        assert found, where
        for selector in found:
            assert selector.name in known, where
            if selector.name in GATEWAY_METRICS:
                asked = {matcher.name for matcher in selector.matchers.matchers}
                assert asked <= GATEWAY_METRICS[selector.name], where


def test_the_dashboard_shows_all_that_is_listed() -> None:
    shown = {selector.name for expression in queries().values() for selector in selectors(expression)}
    assert shown >= {*GATEWAY_METRICS, *VLLM_METRICS}


@pytest.mark.parametrize("metric", ["turns_total", "upstream_errors_total"])
def test_a_label_that_is_grouped_by_exists(metric: str) -> None:
    [label] = COUNTERS[metric]
    [(where, expression)] = [
        (where, text) for where, text in queries().items() if f"chat_gateway_{metric}" in text and "sum by" in text
    ]
    assert expression.startswith(f"sum by ({label}) ")
    assert where.endswith(f"{{{{{label}}}}}")


def test_an_alert_is_about_the_codes_of_errors() -> None:
    [errors] = [rule["expr"] for rule in rules() if "outcome" in rule["expr"]]
    [codes] = re.findall(r'outcome=~"([^"]+)"', errors)
    known = set(re.findall(r"^\s+code = \"(\w+)\"", (ROOT / "app" / "errors.py").read_text("utf-8"), re.MULTILINE))
    assert set(codes.split("|")) <= known


# --- what Grafana is given ---


def test_the_data_source_is_the_stands_prometheus() -> None:
    [source] = load(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["type"], source["access"], source["url"]) == ("prometheus", "proxy", "http://prometheus:9090")
    interval = load(PROMETHEUS / "prometheus.yaml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    wanted = {"type": source["type"], "uid": source["uid"]}
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])


def test_the_dashboard_is_found_where_it_is_mounted() -> None:
    [provider] = load(GRAFANA / "provisioning" / "dashboards" / "dashboards.yaml")["providers"]
    mounts = {mount["target"]: mount["source"] for mount in service("grafana")["volumes"]}
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = service("grafana")["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).is_file()
    assert str(Path(home).parent) == provider["options"]["path"]


def test_the_dashboard_is_of_the_form_that_grafana_documents() -> None:
    board = dashboard()
    assert (board["title"], board["schemaVersion"]) == ("Шлюз и vLLM", 42)
    assert 8 <= len(board["uid"]) <= 40
    assert "id" not in board, "Grafana gives it its own"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert re.search("[А-яё]|vLLM", panel["title"])
        if panel["type"] == "row":
            assert (panel["collapsed"], panel["panels"]) == (False, [])
            continue
        assert panel["type"] in {"stat", "timeseries"}
        assert re.search("[а-яё]", panel["description"])
        assert panel["fieldConfig"].keys() == {"defaults", "overrides"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [*"ABC"[: len(letters)]]
        assert all(target.get("instant", False) is not target.get("range", False) for target in panel["targets"])


def test_no_panel_lies_on_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        taken = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        cells |= taken
    assert len(cells) == 24 * (1 + max(y for _, y in cells)), "and no holes between them"


# --- what the page says ---


def test_the_page_names_the_images_and_the_switch() -> None:
    text = section("Наблюдение", OPERATIONS)
    assert "COMPOSE_PROFILES=monitoring" in text
    for name in SERVICES:
        assert service(name)["image"] in text
    for rule in rules():
        assert f"«{rule['alert']}»" in text
