"""The model's only owner: one thread that judges the tokens of all streams in batches.

A stream holds a `Slot`, which is a row of a model's cache. The event loop puts jobs into slots (tokens to judge, or
something to do in between, such as a reset); the thread takes turns: from the slots that wait longest up to a few
tokens each, one front end and one step of the network for all of them, then one callback to the loop for the batch.

    fair      slots wait in one line (`service.line`); whose audio comes in real time waits for no flood
    bounded   a slot counts its tokens; whoever feeds it waits, see `Slot.pending`
    honest    lag is how long a slot waits for its turn, so a client that pushes a file at once lags alone

When turns take too long, precision is shed first: the factor on all delta thresholds rises, up to what each stream
allows. Knows sessions, sockets and messages not at all.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from models.features import Array, Tokens, log_mel
from models.offline import softmax
from models.operating import METHODS
from service.audio import SAMPLE_RATE
from service.errors import Capacity, UnknownModel
from service.headroom import Usage
from service.line import Line
from service.places import Places
from service.shedding import EVERY_S, Shedding
from service.slots import Hosted, Listener, Slot, Turn, Watcher

if TYPE_CHECKING:
    from models.engines import AnyNetwork
    from models.operating import Method

clock, thread_clock = time.monotonic, time.thread_time
log = logging.getLogger(__name__)


class Engine:
    """Judges for many streams at once; create, `start`, `stop`.

    Attributes:
        places: for streams.
        shedding: of precision, when turns take too long.
        lock: held while jobs are queued, taken and, but for the judging, done.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        slots: int,
        batch_s: float,
        lag_s: float,
        check_share: float = 0.0,
        timer: Callable[[], float] = clock,
    ) -> None:
        """Prepare an engine without models.

        Args:
            watcher: is told about batches, waits and shedding, from the engine's thread.
            slots: streams admitted at most, over all models.
            batch_s: shortest time between the beginnings of two batches, when all slots are taken.
            lag_s: wait for a turn above which no stream is admitted; precision is shed from a twelfth of it.
            check_share: share of tokens that are judged again, densely, by each model's `check`.
            timer: the clock that times batches, s.
        """
        self.batch_s, self.check_share = batch_s, check_share
        self.places = Places(slots, lag_s, lambda: self.wait_s)
        self.hosted: dict[str, Hosted] = {}
        self.on_shed: Callable[[bool], None] = lambda _shedding: None
        self._watcher, self._timer = watcher, timer
        self.lock = threading.Lock()
        self._wake = threading.Event()
        self._line = Line()
        self._open: set[Slot] = set()
        self._turn_s = self._busy_s = self._judged_s = 0.0
        self.shedding = Shedding(lag_s, clock())
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life

    def host(self, name: str, network: AnyNetwork, methods: Collection[Method] = METHODS) -> Hosted:
        """Serve a network, by these methods, under a name from now on; streams of an earlier one keep theirs."""
        self.hosted[name] = hosted = Hosted.of(name, network, self.places.most, self.check_share, methods)
        return hosted

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to judge; listeners are called on `loop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand and end the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to judge."""
        return self._thread is not None and self._thread.is_alive()

    # --- admission

    @property
    def usage(self) -> Usage:
        """Time spent so far; to be asked on the event loop."""
        return Usage(self._busy_s, thread_clock(), self._judged_s)

    @property
    def wait_s(self) -> float:
        """How long slots wait for their turn at present."""
        with self.lock:
            return max(self._turn_s, self._line.wait(clock()))

    def find(self, name: str | None) -> Hosted:
        """The model of this name, or the first one.

        Raises:
            UnknownModel: there is none.
        """
        if name is None:
            return next(iter(self.hosted.values()))
        if name not in self.hosted:
            raise UnknownModel(f"no model {name!r} here; there are {', '.join(self.hosted)}", "model")
        return self.hosted[name]

    def open(self, hosted: Hosted, listener: Listener) -> Slot:
        """Turn a reserved place into a slot, with an empty past.

        Raises:
            Capacity: all rows of this model's cache are taken.
        """
        with self.lock:
            if not hosted.free:
                raise Capacity(f"all places of model {hosted.name!r} are taken", retry_after=5)
            row = heappop(hosted.free)
            self.places.taken += 1
        hosted.cache.reset(row)
        slot = Slot(self, hosted, row, listener)
        self.places.reserved -= 1
        self._open.add(slot)
        return slot

    def age(self, slot: Slot) -> float:
        """Age of the oldest job that waits in a slot, in seconds."""
        with suppress(IndexError):
            return clock() - slot.jobs[0][1]
        return 0.0

    def release(self, slot: Slot) -> None:
        """Take a slot back; see `Slot.close`."""
        if slot not in self._open:
            return
        self._open.discard(slot)
        del slot.listener  # a stream must not live on in its slot until garbage is looked for

        def free() -> None:
            slot.hosted.cache.forget(slot.row)
            heappush(slot.hosted.free, slot.row)
            self.places.taken -= 1

        with self.lock:
            slot.jobs.clear()
        self.enqueue(slot, free)

    def give_back(self) -> None:
        """Return the memory of rows that nobody has to the system: large pages come whole, for one row of a dozen."""
        with self.lock:
            for hosted in self.hosted.values():
                for row in hosted.free:
                    hosted.cache.forget(row)

    def enqueue(self, slot: Slot, job: Tokens | Callable[[], None]) -> None:
        """Queue a job of a slot; called on the event loop."""
        now = clock()
        with self.lock:
            if not callable(job):
                slot.pace.came(job.count * slot.hosted.spec.config.token_samples / SAMPLE_RATE, now)
            slot.jobs.append((job, now))
            self._line.join(slot, now)
        if not self._wake.is_set():
            self._wake.set()

    # --- the thread

    def _run(self) -> None:
        due = clock()
        while not self._stopping:
            self._wake.wait(EVERY_S)  # when nobody speaks, the wait and the factor shall come down as well
            if not self._line.hurried:  # whatever a clock says, no longer than that
                time.sleep(min(self.batch_s, max(0.0, due - clock())))
            due = clock() + self.batch_s * min(1.0, len(self._open) / self.places.most) ** 0.5
            self._wake.clear()
            turns = self._take()
            for hosted in {turn.slot.hosted: None for turn in turns}:
                self._judge(hosted, [turn for turn in turns if turn.slot.hosted is hosted])
            self._shed()
            if self._line:
                self._wake.set()

    def _take(self) -> list[Turn]:
        """The turns of one batch."""
        with self.lock:
            now = clock()
            wait = self._line.wait(now)
            turns = self._line.take(now)
        self._turn_s = wait
        self.shedding.waited(wait)
        if turns:
            self._watcher.waited(wait)
        return [turn for turn in turns if turn.tokens]

    def _judge(self, hosted: Hosted, turns: list[Turn]) -> None:
        """Front end, network and softmax for one model's part of a batch."""
        began = self._timer()
        counts = np.array([turn.tokens for turn in turns], np.int64)
        rows = np.array([turn.slot.row for turn in turns], np.int64)
        tokens = int(counts.sum())
        try:
            frames = log_mel([part for turn in turns for part in turn.parts], hosted.network.config)
            logits, embeddings = hosted.network.embed(hosted.cache, rows, frames, counts)
            posteriors = softmax(logits)
            _spot(turns, embeddings)
            hosted.check.watch(hosted.cache, rows, counts, frames, posteriors)
        except Exception:
            log.exception("a batch failed; its %d streams are closed", len(turns))
            self._call(self._fail, turns)
            return
        seconds = self._timer() - began
        self._busy_s += seconds
        self._judged_s += tokens * hosted.spec.config.token_samples / SAMPLE_RATE
        self._watcher.stepped(len(turns), seconds)
        self._call(self._deliver, turns, posteriors, seconds / tokens)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop, if it is still there."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)

    def _shed(self) -> None:
        """Coarsen the thresholds, or bring them back, by the longest wait of the last moments."""
        before = self.shedding.scale
        if (worst := self.shedding.look(clock())) is None:
            return
        with self.lock:
            longest = self._line.longest(clock())
        self._watcher.lag(max(worst, longest))
        scale = self.shedding.scale
        if scale == before:
            return
        for slot in list(self._open):
            slot.hosted.cache.scale[slot.row] = slot.scale
        self._watcher.delta_scale(scale)
        if (before == 1.0) != (scale == 1.0):
            self._call(self.on_shed, scale > 1.0)

    # --- on the event loop again

    def _deliver(self, turns: list[Turn], posteriors: Array, token_s: float) -> None:
        begin = 0
        for turn in turns:
            slot, end = turn.slot, begin + turn.tokens
            slot.pending -= turn.tokens
            slot.compute_s += turn.tokens * token_s
            if slot in self._open:
                slot.listener.judged(turn.beside(posteriors[begin:end]), turn.arrival)
            begin = end

    def _fail(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.slot in self._open:
                turn.slot.listener.broken()


def _spot(turns: list[Turn], embeddings: Array) -> None:
    """Judge the keywords that some streams brought with them, by the batch's embeddings (N, C)."""
    begin = 0
    for turn in turns:
        if turn.slot.spotting is not None:
            turn.enrolled = turn.slot.spotting.scores(embeddings[begin : begin + turn.tokens])
        begin += turn.tokens
