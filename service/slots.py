"""Places in the engine: a slot is a stream's row of a model's cache, with the jobs that wait for their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.counting import count
from models.operating import METHODS, offered
from models.self_check import SelfCheck
from service.line import Pace
from service.spec import Spec

if TYPE_CHECKING:
    from models.counting import Count
    from models.engines import AnyCache, AnyNetwork
    from models.enroll import Spotting
    from models.features import Array, Tokens
    from models.operating import Method
    from service.engine import Engine


class Listener(Protocol):
    """What a slot's owner is told, on the event loop."""

    def judged(self, posteriors: Array, arrival: float) -> None:
        """The next tokens' posteriors (N, K); the newest of them arrived at `arrival`."""

    def broken(self) -> None:
        """The model failed; nothing more will be judged."""


class Watcher(Protocol):
    """What the engine tells of itself; see service/metrics.py."""

    def stepped(self, rows: int, seconds: float) -> None:
        """One step of the network for `rows` streams."""

    def waited(self, seconds: float) -> None:
        """How long the streams of a batch waited for their turn, at most."""

    def lag(self, seconds: float) -> None:
        """The wait of the slot that waits longest."""

    def delta_scale(self, scale: float) -> None:
        """Factor on the delta thresholds."""


@dataclass(eq=False)
class Hosted:
    """A network, its cache, the free rows, and its check; once replaced, it lives until its last slot closes.

    The free rows are a heap: streams live in the lowest ones, side by side, in as few large pages as can be.
    """

    name: str
    network: AnyNetwork
    cache: AnyCache
    free: list[int]
    spec: Spec
    check: SelfCheck

    @classmethod
    def of(
        cls, name: str, network: AnyNetwork, slots: int, check_share: float, methods: Collection[Method] = METHODS
    ) -> Hosted:
        """Give a network room for `slots` streams, of whose tokens a share is checked.

        Raises:
            CheckpointError: none of its operating points is of the `methods` that may be chosen.
        """
        checkpoint = network.checkpoint
        points = offered(checkpoint, methods)
        spec = Spec(name, checkpoint.fingerprint, network.config, points, checkpoint.calibration)
        check = SelfCheck(network, share=check_share)
        return cls(name, network, network.new_cache(slots), list(range(slots)), spec, check)


@dataclass(eq=False)
class Slot:
    """One stream's place in the engine.

    Attributes:
        spotting: judges the stream's own keywords, if it has any.
        pending: tokens submitted and not yet judged.
        compute_s: the stream's share of the time that batches took.
        pace: how far its audio is ahead of real time.
    """

    engine: Engine
    hosted: Hosted
    row: int
    listener: Listener
    coarsest: float = 1.0
    spotting: Spotting | None = None
    pending: int = 0
    compute_s: float = 0.0
    jobs: deque[tuple[Tokens | Callable[[], None], float]] = field(default_factory=deque)
    queued_at: float | None = None
    pace: Pace = field(default_factory=Pace)
    _before: Count | None = None

    def submit(self, tokens: Tokens) -> None:
        """Queue tokens; there may be none."""
        if tokens.count:
            self.pending += tokens.count
            self.engine.enqueue(self, tokens)

    def reset(self) -> None:
        """Forget the past, once everything submitted so far is judged."""

        def reset() -> None:
            self._before = self._count()
            self.hosted.cache.reset(self.row)

        self.engine.enqueue(self, reset)

    def configure(self, point: str, coarsest: float) -> None:
        """Change the operating point, once everything submitted so far is judged."""

        def configure() -> None:
            self.coarsest = coarsest
            self.hosted.cache.configure(self.row, self.hosted.network.points.index(point), self.scale)

        self.engine.enqueue(self, configure)

    def take(self, share: int) -> Turn:
        """Up to `share` tokens of the jobs, as far as the first that is no audio; those at the front are done."""
        turn = Turn(self)
        while self.jobs and turn.tokens < share:
            job, arrival = self.jobs[0]
            if callable(job):
                if turn.tokens:
                    break
                self.jobs.popleft()
                job()
                continue
            room = share - turn.tokens
            if job.count > room:
                self.jobs[0] = (job[room:], arrival)
                job = job[:room]
            else:
                self.jobs.popleft()
            turn.add(job, arrival)
        return turn

    def close(self) -> None:
        """Give the row back; what still waits is dropped."""
        self.engine.release(self)

    @property
    def scale(self) -> float:
        """Factor on this stream's delta thresholds."""
        return min(self.engine.shedding.scale, self.coarsest)

    @property
    def count(self) -> Count:
        """Work done for this stream since it was opened; never less than a moment ago."""
        with self.engine.lock:  # under which a reset happens
            return self._count()

    @property
    def lag_s(self) -> float:
        """Age of the oldest audio that waits here."""
        return self.engine.age(self)

    def _count(self) -> Count:
        since_reset = count(self.hosted.cache, self.row)
        return since_reset if self._before is None else self._before + since_reset


@dataclass(eq=False, slots=True)
class Turn:
    """What one slot puts into one batch."""

    slot: Slot
    parts: list[Tokens] = field(default_factory=list)
    tokens: int = 0
    arrival: float = 0.0
    enrolled: Array | None = None

    def beside(self, posteriors: Array) -> Array:
        """Posteriors (N, K) -> the same, with a column for each of the stream's own keywords behind them."""
        return posteriors if self.enrolled is None else np.concatenate((posteriors, self.enrolled), axis=1)

    def add(self, part: Tokens, arrival: float) -> None:
        """Put tokens into the batch."""
        self.parts.append(part)
        self.tokens += part.count
        self.arrival = arrival
