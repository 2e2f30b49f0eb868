"""The same stream for programs without asyncio: its event loop runs on a thread of its own.

with connect("ws://127.0.0.1:8770", keywords=["yes"]) as spotter:
    spotter.send(pcm)
    for event in spotter.finish():
        print(event)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from client import connection
from client.connection import Event
from service.protocol import KeywordSettings, Ready, Totals

P = ParamSpec("P")
T = TypeVar("T")


def connect(url: str, **settings: Any) -> BlockingSpotter:  # noqa: ANN401 (those of client.connection.connect)
    """A stream to the server at `url`, to be entered with `with`; see `client.connection.connect`."""
    return BlockingSpotter(url, settings)


class BlockingSpotter:
    """One stream. Audio may be sent on one thread while another iterates the events.

    Whatever is said after `finish` raises StreamFinished.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        """Prepare; nothing is opened before `with`."""
        self._url, self._settings = url, settings

    def __enter__(self) -> Self:
        """Open the connection.

        Raises:
            CannotConnect, StreamFailed: as in `client.connection`.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._spotter = self._do(self._open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let go of the connection."""
        try:
            self._do(self._spotter.__aexit__(kind, error, None))
        finally:
            self._stop()

    @property
    def ready(self) -> Ready:
        """The server's answer to `configure`, of the connection in use."""
        return self._spotter.ready

    @property
    def totals(self) -> Totals | None:
        """The stream in numbers, once it is closed; see `client.connection`."""
        return self._spotter.totals

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, until the stream is closed."""
        while (event := self._do(anext(self._spotter, None))) is not None:
            yield event

    def send(self, audio: bytes) -> None:
        """Send bytes of audio, in any split; wait while too much of it is not acknowledged."""
        self._do(self._spotter.send(audio))

    def finish(self) -> Iterator[Event]:
        """No more audio: have everything judged; the events that were not read yet, to the last."""
        self._do(self._spotter.finish())
        return iter(self)

    def marker(self, name: int | str) -> None:
        """Have `name` come back as an event once all audio so far has been judged."""
        self._do(self._say(self._spotter.marker, name))

    def flush(self) -> None:
        """Have the rest in the server's buffers judged as if silence followed."""
        self._do(self._say(self._spotter.flush))

    def reset(self) -> None:
        """Have everything so far forgotten."""
        self._do(self._say(self._spotter.reset))

    def feedback(self, detection: int, *, correct: bool) -> None:
        """Tell whether a detection of the connection in use was right."""
        self._do(self._say(self._spotter.feedback, detection, correct=correct))

    def adjust(self, keywords: Mapping[str, KeywordSettings]) -> None:
        """Detect these keywords from here on."""
        self._do(self._say(self._spotter.adjust, keywords))

    async def _say(self, say: Callable[P, None], *what: P.args, **how: P.kwargs) -> None:
        say(*what, **how)

    async def _open(self) -> connection.Spotter:
        return await connection.connect(self._url, **self._settings).__aenter__()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
