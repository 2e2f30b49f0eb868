"""What people and programs are shown of a stream."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from client.connection import Interrupted
from client.display import JsonLines, LivePanel, PlainLines, bar
from service.protocol import (
    Checkpoint,
    Closed,
    Detection,
    Heartbeat,
    KeywordSettings,
    Limits,
    Ready,
    Scores,
    Totals,
    Warned,
    WarningCode,
)

CHECKPOINT = Checkpoint(sample=1, token="t")
READY = Ready(
    session="s",
    model="m",
    fingerprint="f",
    labels=("_silence_", "yes", "no"),
    keywords={"yes": KeywordSettings(), "no": KeywordSettings()},
    point="shipped",
    points=("shipped",),
    hop_samples=480,
    replay_samples=0,
    limits=Limits(frame_bytes=1, stream_s=1, idle_s=1, speed=1),
)
DETECTION = Detection(
    id=0,
    keyword="yes",
    score=0.97,
    start_s=1.25,
    end_s=1.7,
    at_s=1.8,
    latency_ms=3.0,
    checkpoint=CHECKPOINT,
    clip="c291bmQ=",
)
HEARTBEAT = Heartbeat(
    at_s=2.0,
    lag_ms=12.0,
    real_time_factor=0.004,
    macs_done=5,
    macs_skipped_vs_window=0.987,
    macs_skipped_vs_causal=0.71,
    delta_scale=1.0,
    cache_bytes=9,
    checkpoint=CHECKPOINT,
)
CLOSED = Closed(
    reason="normal",
    totals=Totals(audio_s=2.0, samples=1, chunks=1, tokens=1, detections=1, macs_done=5, macs_skipped_vs_window=0.987),
)
EVENTS = [
    READY,
    Scores(at_s=1.8, hop_s=0.03, posteriors=[[0.0, 0.1, 0.9], [0.1, 0.9, 0.0]], work=[0.5]),
    DETECTION,
    HEARTBEAT,
    Interrupted("the connection broke", 0.5),
    Warned(code=WarningCode.LAGGING, message="behind"),
    CLOSED,
]


def recorded(**options) -> Console:
    return Console(file=io.StringIO(), width=100, **options)


def test_json_lines_are_whole_objects_and_leave_out_what_only_a_client_needs():
    console = recorded()
    shown = JsonLines(console)
    for event in EVENTS:
        shown.show(event)
    shown.note("a [bracket] and a very long sentence " * 9)
    lines = [json.loads(line) for line in console.file.getvalue().splitlines()]
    assert [line["type"] for line in lines] == [
        "ready", "scores", "detection", "heartbeat", "interrupted", "warning", "closed", "note",
    ]  # fmt: skip
    assert not any({"checkpoint", "clip"} & line.keys() for line in lines)
    assert lines[2]["keyword"] == "yes"


def test_plain_lines_say_what_matters():
    console = recorded()
    shown = PlainLines(console)
    for event in EVENTS:
        shown.show(event)
    shown.note("the microphone is back")
    text = console.file.getvalue()
    assert len(text.splitlines()) == 5
    for words in ("1.25 s  yes", "0.97", "trying again in 0.5 s", "behind", "98.7%", "microphone is back"):
        assert words in text


def test_panel_shows_level_posteriors_work_and_lag():
    console = recorded(force_terminal=True)
    with LivePanel(console, "mic") as panel:
        panel.level(-20.0)
        for event in EVENTS:
            panel.show(event)
        drawing = recorded()
        drawing.print(panel.panel())
    drawn = drawing.file.getvalue()
    for words in ("-20 dB", "yes", "98.7%", "71.0%", "lag 12 ms", "0.4% of a core", "shipped"):
        assert words in drawn
    assert bar(0.9, 14) in drawn, "the newest posterior of yes"
    assert "yes" in console.file.getvalue(), "the detection stays above the panel"


def test_level_falls_slowly():
    panel = LivePanel(recorded(), "mic")
    panel.level(-10.0)
    panel.level(-50.0)
    drawing = recorded()
    drawing.print(panel.panel())
    assert "-12 dB" in drawing.file.getvalue()


@pytest.mark.parametrize(("share", "drawn"), [(0, "····"), (1, "████"), (2, "████"), (-1, "····"), (0.53, "██▏·")])
def test_bar_has_eighths(share, drawn):
    assert bar(share, 4) == drawn
