"""Every method of Metrics moves its family; series stay bounded; what is exposed is OpenMetrics with exemplars."""

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from models.checkpoint import save
from service import metrics as module
from service.errors import reason
from service.metrics import CLIP_OUTCOMES, GROUPS, OTHER, OUTCOMES, REFUSALS, RELOADS, SUPPRESSIONS, Metrics
from service.protocol import CloseCode, WireError
from service.server import Server
from service.settings import Settings

ROOT = Path(__file__).parents[1]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry(), ["yes", "no"])


WORK = SimpleNamespace(
    done={"qkv": 20, "up": 1},
    causal={"qkv": 100, "up": 50},
    window={"up": 4000},
    pruned={"score": {"values": 8}, "head": {}},
    tokens=7,
)
MODEL = {"model": "skwt", "fingerprint": "abc", "point": "shipped"}
MOVES = {
    "session_opened": ((), [("sessions_open", {}, 1)]),
    "session_closed": (
        ("idle", 20.0),
        [("sessions_total", {"outcome": "idle"}, 1), ("sessions_open", {}, -1), ("session_audio_seconds_sum", {}, 20)],
    ),
    "audio_received": ((0.5,), [("audio_seconds_total", {}, 0.5), ("chunks_total", {}, 1)]),
    "clip": (("judged", 0.25), [("clips_total", {"outcome": "judged"}, 1), ("clip_seconds_sum", {}, 0.25)]),
    "refused": (("lag",), [("refusals_total", {"reason": "lag"}, 1)]),
    "stepped": ((3, 0.5), [("step_seconds_sum", {}, 0.5), ("batch_rows_sum", {}, 3)]),
    "worked": (
        (WORK,),
        [
            ("macs_done_total", {"group": "qkv"}, 20),
            ("macs_causal_total", {"group": "up"}, 50),
            ("macs_window_total", {"group": "up"}, 4000),
            ("macs_pruned_total", {"group": "values", "reason": "score"}, 8),
            ("macs_pruned_total", {"group": "values", "reason": "head"}, 0),
            ("tokens_total", {}, 7),
        ],
    ),
    "waited": ((0.125,), [("queue_wait_seconds_sum", {}, 0.125)]),
    "verdict": ((0.0625, "s1"), [("verdict_seconds_sum", {}, 0.0625)]),
    "lag": ((2.5,), [("lag_seconds", {}, 2.5)]),
    "delta_scale": ((1.5,), [("delta_scale", {}, 1.5)]),
    "self_checked": ((0.5,), [("self_check_error_sum", {}, 0.5)]),
    "detected": (("yes", "s1"), [("detections_total", {"keyword": "yes"}, 1)]),
    "near_missed": (("no", 2), [("near_misses_total", {"keyword": "no"}, 2)]),
    "suppressed": (("refractory", 3), [("suppressions_total", {"reason": "refractory"}, 3)]),
    "feedback": (("yes",), [("feedback_total", {"keyword": "yes", "correct": "false"}, 1)]),
    "reloaded": (("failed",), [("reloads_total", {"outcome": "failed"}, 1)]),
    "tell_apart": ((["seven"],), [("detections_total", {"keyword": "seven"}, 0)]),
    "capacity": ((100,), [("sessions_limit", {}, 100)]),
    "cache_bytes": ((4096,), [("cache_bytes", {}, 4096)]),
    "ready": ((True,), [("ready", {}, 1)]),
    "model": (tuple(MODEL.values()), [("model_info", MODEL, 1)]),
}
READERS = {"expose", "families"}


def test_every_method_has_its_line_here():
    methods = {n for n, _ in inspect.getmembers(Metrics, inspect.isfunction) if not n.startswith("_")}
    assert methods - READERS == set(MOVES)


@pytest.mark.parametrize("method", MOVES)
def test_method_moves_its_family(metrics, method):
    arguments, moves = MOVES[method]
    getattr(metrics, method)(*arguments, **({"correct": False} if method == "feedback" else {}))
    for name, labels, value in moves:
        assert metrics.registry.get_sample_value(f"deltaspot_{name}", labels) == value


def test_every_family_is_moved_by_a_method(metrics):
    moved = {name for _, moves in MOVES.values() for name, _, _ in moves}
    for family in metrics.families():
        short = family.name.removeprefix("deltaspot_")
        assert moved & {short, f"{short}_sum"}, short


def test_no_series_grows_with_users(metrics):
    before = len(list(_series(metrics)))
    for number in range(50):
        metrics.session_closed(f"reason {number}", 1.0)
        metrics.detected(f"word {number}", f"session {number}")
        metrics.near_missed(f"word {number}", 1)
        metrics.refused(f"reason {number}")
        metrics.suppressed(f"reason {number}", 1)
        metrics.clip(f"outcome {number}", 1.0)
        metrics.model("skwt", f"fingerprint {number}", "shipped")
    assert len(list(_series(metrics))) == before + 1  # the one model
    for name, label in [("sessions", "outcome"), ("detections", "keyword"), ("refusals", "reason")]:
        assert metrics.registry.get_sample_value(f"deltaspot_{name}_total", {label: OTHER}) == 50


def test_every_close_code_is_an_outcome():
    assert {code.wire for code in CloseCode} < set(OUTCOMES)


def test_every_reason_is_one_that_somebody_gives():
    modules = [path for path in (ROOT / "service").glob("*.py") if path.stem != "metrics"]
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text()))]
    given = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert {*SUPPRESSIONS, *CLIP_OUTCOMES, *RELOADS} - {OTHER} <= given
    assert {reason(kind("")) for kind in kinds(WireError)} == set(REFUSALS) - {OTHER}


def kinds(error):
    return [error, *(kind for below in error.__subclasses__() for kind in kinds(below))]


def test_all_label_values_stand_at_zero_from_the_start(metrics):
    bounded = {"sessions": OUTCOMES, "refusals": REFUSALS, "clips": CLIP_OUTCOMES, "suppressions": SUPPRESSIONS}
    for name, values in {**bounded, "macs_done": GROUPS, "macs_causal": GROUPS, "macs_window": GROUPS}.items():
        found = [s for s in _series(metrics) if s.name == f"deltaspot_{name}_total"]
        assert [next(iter(s.labels.values())) for s in found] == list(values)
        assert not any(s.value for s in found)


async def test_words_of_every_model_that_is_served_have_their_series(network, tmp_path):
    labels = (*network.config.labels[:-1], "marvin")
    save(replace(network.checkpoint, config=replace(network.config, labels=labels)), tmp_path / "own.safetensors")
    server = Server(Settings(models={"own": tmp_path / "own.safetensors"}))
    server.metrics.detected("marvin")
    await server.reload()
    server.metrics.detected("marvin")
    value = partial(server.metrics.registry.get_sample_value, "deltaspot_detections_total")
    assert [value({"keyword": word}) for word in ("go", "marvin", OTHER)] == [0, 1, 1]
    assert server.metrics.registry.get_sample_value("deltaspot_reloads_total", {"outcome": "done"}) == 1


def test_openmetrics_carries_exemplars(metrics):
    metrics.verdict(0.02, "s1")
    metrics.detected("yes", "s1")
    body, content_type = metrics.expose(OPENMETRICS)
    samples = [s for family in text_string_to_metric_families(body.decode()) for s in family.samples if s.exemplar]
    assert content_type.startswith("application/openmetrics-text")
    assert {s.name for s in samples} == {"deltaspot_verdict_seconds_bucket", "deltaspot_detections_total"}
    assert all(s.exemplar.labels == {"session": "s1"} for s in samples)


def test_older_scrapers_get_the_plain_form(metrics):
    body, content_type = metrics.expose("")
    assert content_type.startswith("text/plain")
    assert "process_resident_memory_bytes" in {family.name for family in parse_plain(body.decode())}


SPEAK = """
import sys
from prometheus_client import CollectorRegistry
from service.metrics import Metrics
metrics = Metrics(CollectorRegistry(), ["yes"])
metrics.session_opened()
metrics.lag(float(sys.argv[1]))
metrics.ready(sys.argv[1] == "1")
metrics.model("skwt", "abc", "shipped")
metrics.stepped(3, 0.25)
print(metrics.expose("")[0].decode())
"""


def test_processes_that_share_a_folder_answer_for_each_other(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SPEAK]
    # The first one stays alive (it waits for its reader) while the second one speaks for both.
    with subprocess.Popen(
        [*command[:2], SPEAK + "sys.stdout.flush(); sys.stdin.read()", "1"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        first.stdout.readline()
        said = subprocess.run([*command, "2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        first.communicate()
    values = {(s.name, *sorted(s.labels.values())): s.value for f in parse_plain(said.stdout) for s in f.samples}
    assert values["deltaspot_sessions_open",] == 2
    assert values["deltaspot_lag_seconds",] == 2
    assert values["deltaspot_ready",] == 0
    assert values["deltaspot_step_seconds_count",] == 2
    assert values["deltaspot_model_info", "abc", "shipped", "skwt"] == 1


def test_buckets_ascend():
    for name, buckets in vars(module).items():
        if name.endswith("_BUCKETS"):
            assert list(buckets) == sorted(set(buckets)), name


def test_the_longest_waits_that_are_allowed_are_told_apart():
    assert Settings().behind_s in module.DEADLINE_BUCKETS
    assert module.DEADLINE_BUCKETS[-1] > Settings().behind_s


def _series(metrics):
    return (s for family in metrics.registry.collect() if family.name.startswith("deltaspot") for s in family.samples)
