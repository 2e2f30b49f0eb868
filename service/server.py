"""What one process owns: settings, engine, metrics, and the streams that are open. Its life from warm-up to drain.

Knows no sockets; service/app.py gives it doors.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from models.checkpoint import CheckpointError, load_checkpoint, shipped_path
from models.config import KEYWORDS
from models.engines import make_network
from models.kwt_weights import KWTFileError, is_stock
from service import heap
from service.auth import Anyone, Guard, Keys
from service.engine import Engine, clock
from service.errors import Capacity, Draining, UnknownModel
from service.headroom import Headroom
from service.logs import session_ended
from service.metrics import Metrics
from service.protocol import Configure, Limits, Warned, WarningCode
from service.rehearsal import rehearse
from service.stream import Stream
from service.tracing import Tracing
from service.windows import ClipModel

if TYPE_CHECKING:
    from pathlib import Path

    from models.engines import AnyNetwork
    from service.auth import Caller
    from service.protocol import ServerMessage
    from service.settings import Settings

log = logging.getLogger(__name__)

DEFAULT = "default"
CHECK_S, PARTS = 1.0, 10
COUNTED = 5
"""Streams are looked after every `CHECK_S`, in so many parts, since everybody waits meanwhile; the metrics are told of
one in `COUNTED` of them each time."""
TRIM_S = 10.0
"""Time between two looks whether a crowd is gone, whose memory is given back; while it is there, that would slow it."""
LAST_WORDS_S = 2.0
"""Time for streams that are ended to say so."""


class Server:
    """One process.

    Attributes:
        streams: those that are open.
        clip_models: networks for clips alone, by name.
        warm: the models are loaded and compiled.
        headroom: how many streams the machine keeps up with, once it is warm.
        decoding: how many clips are decoded at a time.
        reloading: the newest reload, kept so that it is not forgotten half-way.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare; `start` loads the models."""
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry(), KEYWORDS)
        self.engine = Engine(
            self.metrics,
            slots=settings.sessions,
            batch_s=settings.batch_ms / 1000,
            lag_s=settings.lag_s,
            check_share=settings.self_check_share,
        )
        self.engine.on_shed = self._tell_shedding
        self.tracing = Tracing.to(settings.otlp_endpoint)
        self.guard = Guard(Keys.load(settings.keys) if settings.keys else Anyone(), settings)
        self.streams: set[Stream] = set()
        self._lagging: set[Stream] = set()
        self._crowd = 0
        self.clip_models: dict[str, ClipModel] = {}
        self.warm = False
        self.headroom: Headroom
        self.limits = Limits(
            frame_bytes=settings.frame_bytes, stream_s=settings.stream_s, idle_s=settings.idle_s, speed=settings.speed
        )
        self.decoding = asyncio.Semaphore(settings.clips)
        self.reloading: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics.ready(False)

    # --- life

    async def start(self) -> None:
        """Load, compile and warm the models, then judge.

        Raises:
            CheckpointError: a file is no checkpoint of ours.
            KWTFileError: a stock network is broken.
        """
        await self._load()
        self.engine.start(asyncio.get_running_loop())
        self.headroom = Headroom(*await rehearse(self.engine.find(None).network))
        self._make_room()
        gc.freeze()  # what is here now stays; looking through it for garbage costs as much as all frames of the streams
        self.warm = True
        self._tasks = [asyncio.create_task(task) for task in (self._watch(), self._check_models(), self._tidy())]

    async def reload(self) -> None:
        """Read all checkpoints again; open streams keep the network they have.

        Raises:
            UnknownModel: a file is no checkpoint of ours; everything stays as it was.
        """
        try:
            await self._load()
        except (CheckpointError, KWTFileError) as error:
            log.exception("models were not reloaded")
            raise UnknownModel(str(error)) from None

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
            log.info("model ready", extra={"model": name, "fingerprint": hosted.spec.fingerprint})
        first = self.engine.find(None).spec
        self.metrics.model(first.name, first.fingerprint, first.default_point)

    def _warm(self, path: Path) -> AnyNetwork:
        """Load a checkpoint and compile it."""
        network = make_network(load_checkpoint(path), self.settings.engine, self.settings.device)
        network.warm_up()
        return network

    async def drain(self) -> None:
        """Take no more streams, tell those that are open, and give them time to end."""
        self.engine.places.draining = True
        self.metrics.ready(False)
        log.info("draining", extra={"streams": len(self.streams)})
        for stream in self.streams:
            stream.warn(WarningCode.DRAINING, f"the server stops within {self.settings.drain_s:g} s")
        await self._emptied(self.settings.drain_s)
        for stream in self.streams:
            stream.fail(Draining("the server is stopping; resume on another replica"))
        await self._emptied(LAST_WORDS_S)

    async def _emptied(self, limit_s: float) -> None:
        """Wait until no stream is open, up to a limit."""
        self._empty.clear()
        if self.streams:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), limit_s)

    async def stop(self) -> None:
        """End the engine; streams should be gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self.engine.stop)
        await asyncio.to_thread(self.tracing.close)

    @property
    def ready(self) -> bool:
        """Whether new streams are taken and served in time."""
        engine = self.engine
        return self.warm and engine.alive and not engine.places.draining and engine.wait_s < self.settings.lag_s

    # --- streams

    def admit(self) -> None:
        """Reserve a place for one more stream.

        Raises:
            Capacity: there is none, or the models are not ready yet.
        """
        if not self.warm:
            self.metrics.refused("not_ready")
            raise Capacity("the models are not ready yet", retry_after=5)
        try:
            self.engine.places.reserve()
        except Draining:
            self.metrics.refused("draining")
            raise
        except Capacity:
            self.metrics.refused("capacity" if self.engine.places.used >= self.engine.places.room else "lag")
            raise

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
        self._crowd = max(self._crowd, len(self.streams))
        self.metrics.session_opened()
        self.metrics.cache_bytes(len(self.streams) * stream.vitals.cache_bytes)
        return stream

    def close(self, stream: Stream, outcome: str | None = None) -> list[ServerMessage]:
        """Close a stream and write its line; return what is left to say."""
        last, totals = stream.close()
        self.streams.discard(stream)
        if not self.streams:
            self._empty.set()
        outcome = outcome or stream.code.wire
        self.metrics.session_closed(outcome, stream.session.audio_s)
        self.metrics.cache_bytes(len(self.streams) * stream.vitals.cache_bytes)
        session_ended(stream.session.id, outcome, **totals.model_dump())
        return last

    async def _watch(self) -> None:
        """Look after all streams now and then, at the cost of one timer."""
        before, at = self.engine.usage, clock()
        for turn in itertools.count():
            streams = list(self.streams)
            for part in range(PARTS):
                await self._sleep(CHECK_S / PARTS)
                self._look_after(streams[part::PARTS], turn)
            usage, now = self.engine.usage, clock()
            self.headroom.observe(usage - before, now - at, shedding=self.engine.shedding.scale > 1.0)
            before, at = usage, now
            self._make_room()
            self.metrics.ready(self.ready)
            self._tell_lagging()

    async def _sleep(self, seconds: float) -> None:
        """Sleep; if that takes longer, this process did nothing meanwhile, and nobody was silent."""
        began = clock()
        await asyncio.sleep(seconds)
        stood_still = max(0.0, clock() - began - seconds)
        for stream in self.streams:
            stream.last_heard += stood_still

    def _look_after(self, streams: list[Stream], turn: int) -> None:
        """Check those of some streams that are still open, and tell the metrics of a few."""
        for number, stream in enumerate(streams, turn):
            if stream in self.streams:
                stream.check()
                if number % COUNTED == 0:
                    stream.count()

    def _tell_lagging(self) -> None:
        """Warn streams that have fallen behind since the last look."""
        lagging = {stream for stream in self.streams if stream.slot.lag_s > self.settings.lag_s}
        for stream in lagging - self._lagging:
            stream.warn(WarningCode.LAGGING, f"audio waits for more than {self.settings.lag_s:g} s to be judged")
        self._lagging = lagging

    def _make_room(self) -> None:
        """Admit as many streams as the machine keeps up with."""
        self.engine.places.room = min(self.engine.places.most, self.headroom.streams)
        self.metrics.capacity(self.engine.places.room)

    async def _check_models(self) -> None:
        """Judge again what the models' checks took notes of, beside the event loop."""
        while True:
            await asyncio.sleep(CHECK_S)
            for hosted in list(self.engine.hosted.values()):
                for errors in await asyncio.to_thread(hosted.check.recompute):
                    for error in errors.tolist():
                        self.metrics.self_checked(error)

    async def _tidy(self) -> None:
        """Give back what a crowd left, once half of it is gone."""
        while True:
            await asyncio.sleep(TRIM_S)
            if len(self.streams) < self._crowd / 2:
                self._crowd = len(self.streams)
                self.engine.give_back()
                await asyncio.to_thread(heap.trim)

    def _tell_shedding(self, shedding: bool) -> None:
        code = WarningCode.SHEDDING if shedding else WarningCode.RESTORED
        text = "judging with coarser thresholds for now" if shedding else "thresholds are back where they were"
        warning = Warned(code=code, message=f"the server is {'' if shedding else 'no longer '}busy: {text}")
        for stream in self.streams:
            if stream.session.asked.coarsest > 1:
                stream.mention(warning)
