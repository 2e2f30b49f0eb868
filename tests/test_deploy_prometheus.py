"""The Prometheus rules: valid, each alert raised and silent in promtool's own tests, each explained to an operator."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from tests.programs import need

DEPLOY = Path(__file__).parents[1] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def run(tool: str, *arguments: str) -> str:
    need(tool)
    done = subprocess.run([tool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_is_valid():
    run("promtool", "check", "config", "prometheus.yml")
    run("amtool", "check-config", "alertmanager.yml")


def test_rules_do_what_their_tests_say():
    run("promtool", "test", "rules", "tests.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_is_shown_raised_and_silent_and_has_a_runbook(alert):
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "tests.yml").read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert["alert"]
    ]
    assert any(case["exp_alerts"] for case in cases), "never raised"
    assert any(not case["exp_alerts"] for case in cases), "never silent"
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (DEPLOY.parent / page).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings


def test_memory_is_told_of_before_the_chart_ends_the_pod():
    (alert,) = (alert for alert in ALERTS if alert["alert"] == "DeltaspotMemory")
    values = yaml.safe_load((DEPLOY / "helm" / "deltaspot" / "values.yaml").read_text())
    limit = int(values["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert float(alert["expr"].rpartition(" > ")[2]) < limit


def test_rules_speak_of_metrics_that_exist():
    known = {family.name for family in Metrics(CollectorRegistry(), ["yes"]).families()}
    rules = "".join((PROMETHEUS / name).read_text() for name in ("recording.yml", "alerts.yml"))
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"(?<![:\w])deltaspot_\w+", rules)}
    assert named
    assert not named - known
