"""Families of metrics: how ours are registered, listed, and rendered for a scraper. Knows none of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PREFIX = "deltaspot"
Processes = Literal["livesum", "livemax", "livemin"]
"""What becomes of a gauge where several processes are scraped as one."""

# A counter's birth date doubles the number of series and no query of ours reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Family:
    """One line of the generated table of metrics."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Families:
    """Those on one registry, or of all processes that share a folder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._exposed = _all_processes() or registry

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Render every family for a scraper.

        Args:
            accept: the request's Accept header; OpenMetrics, with exemplars, when it asks for that.

        Returns:
            The body and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._exposed), content_type

    def families(self) -> Iterator[Family]:
        """Every family of ours, in order of registration, for the generated table."""
        for metric in self.registry.collect():
            if metric.name.startswith(PREFIX):
                name = f"{metric.name}_total" if metric.type == "counter" else metric.name
                labels = dict.fromkeys(label for s in metric.samples for label in s.labels if label != "le")
                yield Family(name, metric.type, tuple(labels), metric.documentation)

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        counter = Counter(f"{PREFIX}_{name}", text, tuple(labels), registry=self.registry)
        for values in itertools.product(*labels.values()) if labels else ():
            counter.labels(*values)
        return counter

    def _gauge(self, name: str, text: str, processes: Processes = "livesum", labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, tuple(labels), registry=self.registry, multiprocess_mode=processes)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, registry=self.registry, buckets=tuple(buckets))


def _all_processes() -> CollectorRegistry | None:
    """Registry that adds up all processes that share `PROMETHEUS_MULTIPROC_DIR`; None where it is not set."""
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:
        return None
    return registry
