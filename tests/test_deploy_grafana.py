"""The dashboards: in step with their generator, known to Grafana's own types, and showing every metric there is."""

import json
import re
from pathlib import Path

import pytest

from deploy import document
from deploy.grafana import generate

DEPLOY = Path(__file__).parents[1] / "deploy"


FILES = {path.stem: path for path in generate.FOLDER.glob("*.json")}


def test_files_are_what_the_generator_writes():
    assert set(FILES) == set(generate.DASHBOARDS)
    for name, path in FILES.items():
        assert path.read_text() == generate.text(name), f"run python deploy/grafana/generate.py ({name})"


def test_table_of_metrics_is_what_the_generator_writes():
    assert document.TABLE.read_text() == document.table(), "run python deploy/document.py"


def test_every_metric_is_on_a_dashboard_or_in_a_rule():
    for row in document.table().splitlines():
        if row.startswith("| `deltaspot_"):
            assert row.split("|")[-2].strip(), f"nobody looks at {row}"


def test_queries_name_records_that_exist():
    records = set(re.findall(r"record: (\S+)", (DEPLOY / "prometheus" / "recording.yml").read_text()))
    named = {r for name in FILES for r in re.findall(r"\b[a-z_]+:[\w:]+", _queries(name))}
    assert named
    assert named <= records


@pytest.mark.parametrize("name", sorted(generate.DASHBOARDS))
def test_grafana_knows_every_field(name):
    """What its types do not know does not survive the way through them."""
    dashboards = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs grafana-foundation-sdk")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    written = generate.render(name)
    dashboard = dashboards.Dashboard.from_json(json.loads(FILES[name].read_text()))
    read = json.loads(json.dumps(dashboard, cls=encoder.JSONEncoder))
    assert _common(written, read) == written
    assert written["uid"] == f"deltaspot-{name}"


def test_a_panel_of_models_shows_their_names():
    """Their value is always 1."""
    panels = [p for name in FILES for p in generate.render(name)["panels"] if "model_info" in p["targets"][0]["expr"]]
    assert [panel["options"] for panel in panels] == [{"textMode": "name"}] * 2


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    for name in FILES:
        panels = generate.render(name)["panels"]
        cells = [
            (x, y)
            for p in panels
            for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
            for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert len({p["id"] for p in panels}) == len(panels)


def _queries(name):
    return "\n".join(t["expr"] for p in generate.render(name)["panels"] for t in p["targets"])


def _common(written, read):
    """`read`, less what the types added by themselves."""
    if isinstance(written, dict):
        return {key: _common(value, read[key]) for key, value in written.items() if key in read}
    if isinstance(written, list):
        return [_common(*pair) for pair in zip(written, read, strict=True)]
    return read
