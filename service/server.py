"""What one process owns: settings, engine, metrics, and the streams that are open. Its life from warm-up to drain.

Knows no sockets; service/app.py gives it doors.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from models.checkpoint import load_checkpoint, shipped_path
from models.engines import make_network
from models.kwt_weights import is_stock
from service import logs, upkeep
from service.auth import Anyone, Guard, Keys
from service.bodies import Bodies
from service.engine import Engine
from service.errors import Capacity, Draining, NotReady, UnknownModel, reason
from service.headroom import Headroom
from service.metrics import Metrics
from service.protocol import Configure, Warned, WarningCode
from service.rehearsal import rehearse
from service.settings import limits
from service.stream import Stream
from service.tracing import Tracing
from service.windows import ClipModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.engines import AnyNetwork
    from service.auth import Caller
    from service.protocol import ServerMessage, WireError
    from service.settings import Settings
    from service.tracing import Span

log = logging.getLogger(__name__)

DEFAULT = "default"
READY = "ready"
LAST_WORDS_S = 2.0
"""Time for streams that are ended to say so."""


class Server:
    """One process.

    Attributes:
        streams: those that are open.
        crowd: most of them at a time since memory was last given back.
        clip_models: networks for clips alone, by name.
        warm: the models are loaded and compiled.
        headroom: how many streams the machine keeps up with, once it is warm.
        decoding: how many clips are decoded at a time.
        keys: who may come in; None for everybody.
        bodies: clips that are on their way, or in memory.
        reloading: the newest reload, kept so that it is not forgotten half-way.
        failed: something without which there is no service went wrong; `on_failure` was called.
        on_reload: reads again what the doors read at their start.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare; `start` loads the models."""
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry(), ())
        self.engine = Engine(
            self.metrics,
            slots=settings.sessions,
            batch_s=settings.batch_ms / 1000,
            lag_s=settings.lag_s,
            check_share=settings.self_check_share,
        )
        self.engine.on_shed = self._tell_shedding
        self.tracing = Tracing.to(settings.otlp_endpoint)
        self.keys = Keys.load(settings.keys) if settings.keys else None
        self.guard = Guard(self.keys or Anyone(), settings)
        self.streams: set[Stream] = set()
        self._spans: dict[Stream, Span] = {}
        self.crowd = 0
        self.clip_models: dict[str, ClipModel] = {}
        self.warm = self.failed = False
        self.on_failure: Callable[[], None] = lambda: None
        self.on_reload: Callable[[], None] = lambda: None
        self.headroom: Headroom
        self.limits = limits(settings)
        self._left = asyncio.Event()
        self.bodies = Bodies(settings, self._left.set)
        self.decoding = asyncio.Semaphore(settings.clips)
        self.reloading: asyncio.Task[None] | None = None
        self._one_reload = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics.ready(False)

    # --- life

    async def start(self) -> None:
        """Load, compile and warm the models, then judge.

        Raises:
            CheckpointError: a file is no checkpoint of ours.
            KWTFileError: a stock network is broken.
        """
        log.info("compiling or loading kernels; the first start takes up to a minute")
        async with self._one_reload:  # a signal may come before all is loaded
            await self._load()
        self.engine.start(asyncio.get_running_loop())
        self.headroom = Headroom(*await rehearse(self.engine.find(None).network))
        self.make_room()
        gc.collect()  # the rehearsal's cache, too
        gc.freeze()  # what is here now stays; looking through it for garbage costs as much as all frames of the streams
        self.warm = True
        self._tasks = [asyncio.create_task(task(self)) for task in (upkeep.watch, upkeep.check_models, upkeep.tidy)]
        for task in self._tasks:
            task.add_done_callback(self.ended)
        log.info("ready", extra={"streams": self.engine.places.room})

    def ended(self, task: asyncio.Task[None]) -> None:
        """Take note of the end of a task on which everything depends; a failure is the end of the service."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the server cannot go on", exc_info=error)
            self.failed = True
            self.on_failure()

    async def reload(self) -> None:
        """Read keys, certificate and all checkpoints again; open streams go on, with the network that they have.

        Raises:
            UnknownModel: a file is not what it should be; what was read before it holds, and the rest is as it was.
        """
        outcome = "failed"
        try:
            async with self._one_reload:  # two at a time might end with what the first of them read
                if self.keys is not None and self.settings.keys is not None:
                    self.keys.adopt(Keys.load(self.settings.keys))
                self.on_reload()
                await self._load()
            outcome = "done"
        except (ValueError, OSError) as error:  # the errors of all that is read are among these
            log.exception("not everything was reloaded")
            raise UnknownModel(str(error)) from None
        finally:
            self.metrics.reloaded(outcome)

    async def _load(self) -> None:
        more = self.settings.models
        stock = {name: path for name, path in more.items() if is_stock(path)}
        paths: dict[str, Path] = {DEFAULT: self.settings.model or shipped_path(), **more}
        networks = {
            name: await asyncio.to_thread(self._warm, path) for name, path in paths.items() if name not in stock
        }
        self.clip_models = {name: ClipModel.load(name, path) for name, path in stock.items()}
        for name, network in networks.items():
            hosted = self.engine.host(name, network, self.settings.methods)
            self.metrics.tell_apart(network.config.keywords)
            log.info("model ready", extra={"model": name, "fingerprint": hosted.spec.fingerprint})
        first = self.engine.find(None).spec
        self.metrics.model(first.name, first.fingerprint, first.default_point)

    def _warm(self, path: Path) -> AnyNetwork:
        """Load a checkpoint and compile it."""
        network = make_network(load_checkpoint(path), self.settings.engine, self.settings.device)
        network.warm_up()
        return network

    async def drain(self) -> None:
        """Take no more streams and clips, tell streams that are open, and give all time to end.

        Streams that stay half of it go one after another: all at once would overrun the replicas where they resume.
        """
        self.engine.places.draining = True
        self.metrics.ready(False)
        log.info("draining", extra={"streams": len(self.streams)})
        for stream in self.streams:
            stream.warn(WarningCode.DRAINING, f"the server stops within {self.settings.drain_s:g} s")
        gone = Draining("the server is stopping; resume on another replica")
        half_s = self.settings.drain_s / 2
        await self._emptied(half_s)
        leaving = list(self.streams)
        for stream in leaving:
            await self._emptied(half_s / len(leaving))
            stream.fail(gone)
        for stream in self.streams:  # those that had a place, and configured late
            stream.fail(gone)
        await self._emptied(LAST_WORDS_S)

    async def _emptied(self, limit_s: float) -> None:
        """Wait until no stream is open and no posted body here, up to a limit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.streams or self.bodies.here:
                    self._left.clear()
                    await self._left.wait()

    async def stop(self) -> None:
        """End the engine; streams should be gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self.engine.stop)
        await asyncio.to_thread(self.tracing.close)

    @property
    def ready(self) -> bool:
        """Whether new streams are taken and served in time."""
        return self.state == READY

    @property
    def state(self) -> str:
        """What keeps new streams away, or `READY`."""
        if self.engine.places.draining:
            return "draining"
        if self.failed or (self.warm and not self.engine.alive):
            return "broken"
        if not self.warm:
            return "warming up"
        return "behind" if self.engine.wait_s >= self.settings.lag_s else READY

    # --- streams

    def admit(self, *, reserve: bool = True, begun: bool = False) -> None:
        """See that there is a place for one more stream, and reserve it; see `Places.admit`.

        Raises:
            Capacity: there is none, or the models are not ready yet.
        """
        if not self.warm:
            raise NotReady("the models are not ready yet", retry_after=5)
        (self.engine.places.reserve if reserve else self.engine.places.admit)(begun=begun)

    def turned_away(self, error: WireError) -> None:
        """Count who was not served, and write it down, unless there was no room: a crowd needs no lines as well."""
        self.metrics.refused(reason(error))
        if not isinstance(error, Capacity):
            logs.log.info("refused", reason=reason(error), message=error.message, field=error.field)

    def open(self, configure: Configure, caller: Caller) -> Stream:
        """Turn a reserved place into a stream.

        Raises:
            WireError: the configuration makes no sense here, or the caller may not have another stream.
        """
        if configure.model in self.clip_models:
            raise UnknownModel(f"{configure.model!r} judges clips only; POST them to /v1/detect", "model")
        limits = self.limits.model_copy(update={"speed": min(self.limits.speed, caller.speed or self.limits.speed)})
        stream = Stream(self.engine, configure, limits, self.settings, self.metrics, secrets.token_hex(8))
        self.streams.add(stream)
        self._spans[stream] = self.tracing.begin("session", session=stream.session.id)
        self.crowd = max(self.crowd, len(self.streams))
        self.metrics.session_opened()
        self.metrics.cache_bytes(stream.vitals.cache_bytes)
        return stream

    def close(self, stream: Stream, outcome: str | None = None) -> list[ServerMessage]:
        """Close a stream, its span too, and write its line; return what is left to say."""
        span = self._spans.pop(stream)
        try:
            last, totals = stream.close()
        finally:
            self.streams.discard(stream)
            self._left.set()
        outcome = outcome or stream.code.wire
        span.end(outcome=outcome, audio_s=stream.session.audio_s, detections=stream.session.detections)
        self.metrics.session_closed(outcome, stream.session.audio_s)
        self.metrics.cache_bytes(-stream.vitals.cache_bytes)
        why = {"message": stream.error.message, "field": stream.error.field} if stream.error else {}
        what = {"model": stream.hosted.name, "point": stream.session.point, "connection": stream.session.connection}
        logs.log.info("session", session=stream.session.id, outcome=outcome, **why, **what, **totals.model_dump())
        return last

    def make_room(self) -> None:
        """Admit as many streams as the machine keeps up with."""
        self.engine.places.room = min(self.engine.places.most, self.headroom.streams)
        self.metrics.capacity(self.engine.places.room)

    def _tell_shedding(self, shedding: bool) -> None:
        code = WarningCode.SHEDDING if shedding else WarningCode.RESTORED
        text = "judging with coarser thresholds for now" if shedding else "thresholds are back where they were"
        warning = Warned(code=code, message=f"the server is {'' if shedding else 'no longer '}busy: {text}")
        for stream in self.streams:
            if stream.session.asked.coarsest > 1:
                stream.mention(warning)
