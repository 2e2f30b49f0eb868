"""Spans for OpenTelemetry: one for each stream, one for each clip; nothing at all unless a collector is named.

The extra `otel` brings the libraries. Knows no sessions, settings or metrics.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Value = str | bool | int | float


class Span:
    """A span that is open; without a collector it takes notes and forgets them."""

    def __init__(self, span: Any = None) -> None:  # noqa: ANN401  opentelemetry is optional
        self._span = span

    def note(self, **attributes: Value) -> None:
        """Say something about the stream or clip, under the prefix `deltaspot.`."""
        if self._span is not None:
            self._span.set_attributes({f"deltaspot.{key}": value for key, value in attributes.items()})

    def end(self, **attributes: Value) -> None:
        """Say the last things, and close it."""
        self.note(**attributes)
        if self._span is not None:
            self._span.end()


class Tracing:
    """Where spans go."""

    def __init__(self, provider: Any = None) -> None:  # noqa: ANN401  opentelemetry is optional
        """Use a TracerProvider of OpenTelemetry, or none: then every span is empty."""
        self._provider = provider
        self._tracer = provider.get_tracer("deltaspot", version("deltaspot")) if provider else None

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Send spans in batches to a collector.

        Args:
            endpoint: OTLP over HTTP, such as `http://collector:4318/v1/traces`; empty for no tracing.

        Raises:
            ModuleNotFoundError: an endpoint is given and the extra `otel` is not installed.
        """
        if not endpoint:
            return cls()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create({"service.name": "deltaspot"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        return cls(provider)

    def begin(self, name: str, **attributes: Value) -> Span:
        """Open a span of a `session`; whoever asked for it ends it."""
        span = Span(None if self._tracer is None else self._tracer.start_span(name))
        span.note(**attributes)
        return span

    @contextmanager
    def span(self, name: str, **attributes: Value) -> Iterator[Span]:
        """Open a span around a `clip`; an exception that passes through marks it as failed."""
        if self._tracer is None:
            yield Span()
            return
        with self._tracer.start_as_current_span(name) as inner:
            span = Span(inner)
            span.note(**attributes)
            yield span

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()
