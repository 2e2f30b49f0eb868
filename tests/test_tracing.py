"""Spans as a collector receives them, over OTLP on a real socket."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from client.connection import connect
from service.tracing import Tracing

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
)


@pytest.fixture
def collector():
    """A collector of one's own: its endpoint, and the spans it got."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = trace_service.ExportTraceServiceRequest()
            request.ParseFromString(body)
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_a_stream_is_one_span(collector):
    endpoint, spans = collector
    tracing = Tracing.to(endpoint)
    tracing.begin("session", session="s1").end(outcome="normal", audio_s=1.5)
    tracing.close()
    (span,) = spans
    said = {a.key: a.value.string_value or a.value.double_value for a in span.attributes}
    assert span.name == "session"
    assert said == {"deltaspot.session": "s1", "deltaspot.outcome": "normal", "deltaspot.audio_s": 1.5}


def test_a_clip_that_fails_is_told(collector):
    endpoint, spans = collector
    tracing = Tracing.to(endpoint)
    with pytest.raises(ValueError, match="broken"), tracing.span("clip"):
        raise ValueError("broken")
    tracing.close()
    (span,) = spans
    assert span.status.code == span.status.STATUS_CODE_ERROR


def test_without_a_collector_nothing_happens():
    tracing = Tracing.to("")
    tracing.begin("session", session="s1").end(outcome="normal")
    with tracing.span("clip") as span:
        span.note(detections=1)
    tracing.close()


def test_a_server_makes_a_span_of_each_stream_and_clip(collector, serving, spoken):
    endpoint, spans = collector

    async def stream(url):
        async with connect(url) as spotter:
            await spotter.send(spoken.tobytes())
            await spotter.finish()
            return spotter.ready.session

    async def satellite(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'{"type":"audio-start"}\n{"type":"audio-stop"}\n')
        assert b"not-detected" in await reader.readline()
        writer.close()

    with serving(otlp_endpoint=endpoint, wyoming_port=0) as running:
        session = asyncio.run(stream(running.stream))
        asyncio.run(satellite(running.app.state.wyoming.sockets[0].getsockname()[1]))
        question = {"encoding": "s16le"}
        httpx.post(
            f"{running.http}/v1/detect", params=question, content=spoken.tobytes(), timeout=60
        ).raise_for_status()
    assert sorted(span.name for span in spans) == ["clip", "session", "session"]
    said = [{a.key: a.value.string_value for a in span.attributes} for span in spans if span.name == "session"]
    assert session in {one["deltaspot.session"] for one in said}
    assert [one["deltaspot.outcome"] for one in said] == ["normal"] * 2
