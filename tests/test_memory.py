"""What a stream remembers from one connection to the next, told without a socket."""

from __future__ import annotations

import pytest

from client import memory
from client.memory import Memory
from service.protocol import Closed, Configure, Failed, Feedback, Marker, Scores, Totals, parse_client
from tests.peer import PCM, REPLAY, detection, heartbeat, ready


@pytest.fixture
def stream() -> Memory:
    made = Memory(Configure())
    made.note(ready())
    return made


def test_a_marker_that_is_answered_twice_is_told_once(stream: Memory) -> None:
    stream.add(Marker(id="here"))
    assert [parse_client(said) for said in stream.unsent()] == [Marker(id="here")]
    stream.hello()  # another connection, which is asked again
    assert [stream.note(Marker(id="here")) for _ in range(2)] == [Marker(id="here"), None]


def test_markers_of_one_name_are_told_as_often_as_they_were_asked(stream: Memory) -> None:
    for _ in range(2):
        stream.add(Marker(id="here"))
    assert stream.note(Marker(id="here")) is not None
    stream.hello()
    assert [stream.note(Marker(id="here")) for _ in range(2)] == [Marker(id="here"), None]


def test_a_marker_whose_name_is_used_again_waits_for_its_own_place(stream: Memory) -> None:
    stream.add(marker := Marker(id="here"))
    list(stream.unsent())
    assert stream.note(marker) == marker
    stream.add(PCM)
    stream.add(marker)
    stream.hello()
    assert list(stream.unsent()) == [PCM, marker.model_dump_json()], "the first of them was answered"


def test_feedback_goes_at_once_and_to_no_other_connection(stream: Memory) -> None:
    stream.add(PCM)
    stream.add(opinion := Feedback(detection=0, correct=True))
    said, *audio = stream.unsent()
    assert (parse_client(said), b"".join(audio)) == (opinion, PCM)
    stream.add(PCM)
    stream.add(PCM)
    going = stream.unsent()
    assert next(going) == PCM
    stream.add(opinion)
    assert parse_client(next(going)) == opinion, "before the rest of the audio"
    stream.add(opinion)
    stream.hello()
    assert b"".join(stream.unsent()) == 3 * PCM, "which the next server has to hear"


def test_only_the_end_of_the_stream_is_told(stream: Memory) -> None:
    totals = Totals(audio_s=0.0, samples=0, chunks=0, tokens=0, detections=0, macs_done=0)
    assert stream.note(Closed(reason="draining", totals=totals)) is None
    assert stream.totals is None
    assert stream.note(Closed(reason="normal", totals=totals)) is not None
    assert stream.totals == totals


def test_totals_have_the_audio_and_the_detections_of_all_connections(stream: Memory) -> None:
    stream.add(PCM)
    list(stream.unsent())
    stream.note(detection(0, 600))
    stream.hello()
    stream.note(detection(1, 900))
    last = Totals(audio_s=0.02, samples=320, chunks=1, tokens=2, detections=1, macs_done=5)
    told = stream.note(Closed(reason="normal", totals=last))
    whole = last.model_copy(update={"audio_s": len(PCM) / 2 / 16_000, "detections": 2})
    assert (stream.totals, told) == (whole, Closed(reason="normal", totals=whole))


def test_what_a_server_complained_of_is_forgotten_with_its_connection(stream: Memory) -> None:
    assert stream.note(failed := Failed(code="draining", message="the server is stopping")) is None
    assert stream.note(None) is None  # a message of a later version
    assert stream.failed == failed
    stream.hello()
    assert stream.failed is None


def test_a_stream_goes_on_before_its_checkpoint(stream: Memory) -> None:
    assert stream.hello().resume is None
    stream.add(PCM)
    assert b"".join(stream.unsent()) == PCM
    stream.stuck_since = 7.0
    assert stream.note(detection(0, 600)) is not None
    assert stream.stuck_since is None, "there was progress"
    resume = stream.hello().resume
    assert resume is not None
    assert (resume.token, resume.sample <= 600 - REPLAY) == ("t600", True)
    assert b"".join(stream.unsent()) == PCM[2 * resume.sample :]
    stream.stuck_since = 8.0
    stream.note(heartbeat(600))
    assert stream.stuck_since == 8.0, "which it knew before"


def test_a_stream_that_no_server_goes_on_with_begins_anew_with_what_is_kept(stream: Memory) -> None:
    for start in range(0, len(PCM), 64):
        stream.add(PCM[start : start + 64])
    list(stream.unsent())
    stream.note(detection(0, 600))
    begin = stream.hello().resume.sample
    stream.begin_anew()
    assert stream.hello().resume is None
    assert b"".join(stream.unsent()) == PCM[2 * begin :]
    assert stream.note(detection(0, 600 - begin)) is None, "which the server before has told"
    told = stream.note(detection(1, 900 - begin))
    assert (told.start_s, told.end_s, told.at_s) == (begin / 16_000, 0.5 + begin / 16_000, 0.6 + begin / 16_000)
    resume = stream.hello().resume
    assert resume is not None
    assert resume.token == f"t{900 - begin}"
    assert b"".join(stream.unsent()) == PCM[2 * (begin + resume.sample) :]
    assert begin < begin + resume.sample <= 900 - REPLAY, "as the second server counts"


def scores(at_s: float, *rows: float) -> Scores:
    return Scores(at_s=at_s, hop_s=0.03, posteriors=[[row] for row in rows], work=[])


def test_scores_that_two_connections_tell_are_told_once(stream: Memory) -> None:
    stream.add(PCM)
    list(stream.unsent())
    assert stream.note(scores(0.08, 0.1, 0.2)) == scores(0.08, 0.1, 0.2)
    stream.note(heartbeat(500))
    assert stream.note(scores(0.03 + 0.08, 0.3)) == scores(0.03 + 0.08, 0.3)
    stream.hello()
    assert stream.note(scores(0.08, 0.2)) is None
    assert stream.note(scores(0.14, 0.2, 0.3, 0.4)) == scores(0.14, 0.4)
    assert stream.note(scores(0.1401, 0.5)) == scores(0.1401, 0.5), "after a flush tokens may be that near"


def test_scores_of_a_stream_that_began_anew_follow_those_told(stream: Memory) -> None:
    stream.add(bytes(2 * 16_000))
    list(stream.unsent())
    stream.note(heartbeat(8_000))
    stream.note(scores(0.53, 0.1))
    begin_s = stream.hello().resume.sample / 16_000
    stream.begin_anew()
    stream.hello()
    told = stream.note(scores(0.55 - begin_s, 0.2, 0.3))
    assert (told.at_s, told.posteriors) == (pytest.approx(0.55), [[0.3]])


def test_an_outage_is_bounded(stream: Memory) -> None:
    stream.add(bytes(int(2 * 16_000 * memory.BACKLOG_S)))
    assert not stream.full
    stream.add(PCM[:2])
    assert stream.full


def test_audio_may_go_until_two_heartbeats_are_due() -> None:
    stream = Memory(Configure(sample_rate=8_000, heartbeat_ms=60_000))
    stream.note(ready())
    stream.add(bytes(2 * 8_000 * 100))
    assert not stream.full, "the server acknowledges nothing before a minute of it"
    assert sum(map(len, stream.unsent())) == 2 * 8_000 * 100


def test_audio_goes_in_frames_that_the_server_takes() -> None:
    stream = Memory(Configure(channels=3))
    limits = ready().limits.model_copy(update={"frame_bytes": 1_024})
    stream.note(ready().model_copy(update={"limits": limits}))
    stream.add(audio := PCM * 6)
    frames = list(stream.unsent())
    assert b"".join(frames) == audio
    assert {len(frame) for frame in frames[:-1]} == {1_020}, "whole samples of three channels"


def test_settings_hold_from_where_they_were_changed_in_the_next_connection_too(stream: Memory) -> None:
    stream.add(PCM)
    stream.add(changed := Configure(scores=True))
    stream.add(PCM)
    stream.add(PCM)
    list(stream.unsent())
    assert stream.hello() == Configure()
    assert [said if isinstance(said, bytes) else parse_client(said) for said in stream.unsent()][1] == changed
    stream.note(heartbeat(len(PCM) // 2 + REPLAY))
    assert stream.hello().model_copy(update={"resume": None}) == changed, "what came before is not needed any more"
    assert all(isinstance(said, bytes) for said in stream.unsent())
