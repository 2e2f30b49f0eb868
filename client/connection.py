"""A stream to a server that outlives its connection.

    source = AudioFile("meeting.flac")      # of client.sources; or any async iterable of bytes
    async with connect("ws://127.0.0.1:8770", keywords=["yes", "no"], sample_rate=source.rate) as spotter:
        spotter.play(source)                # or: await spotter.send(pcm)
        events = [event async for event in spotter]

If the connection breaks, the stream goes on with the next: what was not acknowledged is sent again, and no detection
is told twice. Where the next server is of another version and cannot go on, it begins with what is kept; detections are
numbered from 0 then. Knows nothing of microphones and screens.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from client.address import stream_url
from client.errors import CannotConnect, ClientError, SourceError, StreamFailed, StreamFinished
from client.handshake import NotNow, dial, introduce, parsed, why_closed
from client.memory import Memory, News
from client.pace import pump
from client.wishes import wished
from service.protocol import (
    Close,
    Configure,
    Detection,
    Enrolled,
    Feedback,
    Flush,
    Heartbeat,
    KeywordSettings,
    Marker,
    Ready,
    Reset,
    Totals,
)

LONGEST_PAUSE_S: Final = 5.0
"""Between two tries, s; a connection that lasted longer counts for progress if no audio is overdue."""
AGAIN_S: Final = 1.0
"""When whoever waits for a server may look for it again, s."""
TOKEN: Final = "resume.token"  # noqa: S105 (a field's name)
"""What a server is at odds with that is of another version than the one before."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The connection broke; another will be tried, and the stream goes on.

    Attributes:
        reason: one sentence for a person.
        retry_s: when it is tried, from now.
    """

    reason: str
    retry_s: float


Event = News | Interrupted


def connect(
    url: str,
    *,
    keywords: Iterable[str] | Mapping[str, KeywordSettings] | None = None,
    enrolled: Iterable[Path | str | Enrolled] = (),
    key: str | None = None,
    retry_s: float = 60.0,
    **settings: Any,  # noqa: ANN401 (every field of Configure, which checks them)
) -> Spotter:
    """A stream to the server at `url`, to be entered with `async with`.

    Args:
        url: `ws://host:port`, `http://host:port` or `host:port`; the path `/v1/stream` may be left out, and what a
            proxy puts before it ends in `/`: `https://host/deltaspot/`.
        keywords: the words to detect, or settings for each; the model's own if left out.
        enrolled: keywords of one's own, detected as well: files of `deltaspot enroll`, or what is in them.
        key: sent as a bearer token.
        retry_s: how long to try again without any progress before giving up, s.
        settings: other fields of `service.protocol.Configure`: `sample_rate`, `encoding`, `scores`, `point`, ...

    Raises:
        SettingError: for an argument that the protocol does not know, and for what is no address.
        SourceError: for a file that is no keyword.
    """
    return Spotter(stream_url(url), wished(keywords, enrolled, settings), key=key, retry_s=retry_s)


class Spotter:
    """One stream, see `connect`; `connections` is how many it has taken so far."""

    def __init__(self, url: str, configure: Configure, *, key: str | None, retry_s: float) -> None:
        """Prepare; nothing is opened before `async with`."""
        self.url, self.connections = url, 0
        self._memory = Memory(configure)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._retry_s = retry_s
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._work, self._room = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> Ready:
        """The server's answer to `configure`, of the connection in use."""
        return self._memory.ready

    @property
    def totals(self) -> Totals | None:
        """The stream in numbers, once it is closed; all but `audio_s` and `detections` is of the last connection."""
        return self._memory.totals

    async def __aenter__(self) -> Self:
        """Open the first connection.

        Raises:
            CannotConnect: if there is no server, or it refuses; the first connection is not tried twice.
            StreamFailed: if the server does not accept the settings.
        """
        try:
            socket = await self._open()
        except ssl.SSLCertVerificationError as error:
            raise CannotConnect(
                f"{self.url}: {error.verify_message}; SSL_CERT_FILE names an authority to trust"
            ) from None
        except (OSError, ConnectionClosed) as error:
            raise NotNow(f"no server answers at {self.url}: {error}", AGAIN_S) from None
        self._tasks.append(asyncio.create_task(self._run(socket)))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of the connection; `finish` beforehand to have everything judged."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()  # a task that never began has not done it

    def __aiter__(self) -> Self:
        """Events, until the stream is closed."""
        return self

    async def __anext__(self) -> Event:
        """Next event.

        Raises:
            StreamFailed, CannotConnect: when the stream cannot go on; also whatever the source in `play` raised.
        """
        event = await self._events.get()
        if isinstance(event, Event):
            return event
        self._events.put_nowait(event)  # the end is the end, however often one asks
        raise event or StopAsyncIteration

    async def send(self, audio: bytes) -> None:
        """Send bytes of audio, in any split; wait while more than a minute of it is not acknowledged.

        Raises:
            StreamFailed, CannotConnect: if the stream has ended.
            StreamFinished: after `finish`.
        """
        self._say(audio)
        while self._memory.full and not self._ended:
            self._room.clear()
            await self._room.wait()
        if self._ended:
            self._tasks[0].result()

    def play(self, source: AsyncIterable[bytes]) -> None:
        """Send all of `source` in the background, then finish; its errors are raised where events are awaited.

        A SourceError comes at once if it says that its rate is not the stream's.
        """
        rate = self._memory.configure.sample_rate
        if (own := getattr(source, "rate", rate)) != rate:
            raise SourceError(f"the source has {own} Hz and the stream {rate}: connect(url, sample_rate=source.rate)")
        self._tasks.append(asyncio.create_task(self._play(source)))

    async def finish(self) -> Totals | None:
        """No more audio: have everything judged; events stay to be read. Return the stream in numbers."""
        if not self._memory.finished:
            self._say(Close())
        await asyncio.wait(self._tasks[:1])
        self._tasks[0].result()
        return self.totals

    def marker(self, name: int | str) -> None:
        """Have `name` come back as an event once all audio so far has been judged."""
        self._say(Marker(id=name))

    def flush(self) -> None:
        """Have the rest in the server's buffers judged as if silence followed."""
        self._say(Flush())

    def reset(self) -> None:
        """Have everything so far forgotten."""
        self._say(Reset())

    def feedback(self, detection: int, *, correct: bool) -> None:
        """Tell whether a detection was right; the server knows those of the connection in use, and no earlier ones."""
        self._say(Feedback(detection=detection, correct=correct))

    def adjust(self, keywords: Mapping[str, KeywordSettings]) -> None:
        """Detect these keywords from here on."""
        self._say(self._memory.configure.model_copy(update={"keywords": dict(keywords)}))

    @property
    def _ended(self) -> bool:
        return self._tasks[0].done()

    def _say(self, said: bytes | Marker | Flush | Reset | Feedback | Configure | Close) -> None:
        self._memory.add(said)
        self._work.set()

    async def _play(self, source: AsyncIterable[bytes]) -> None:
        try:
            async for audio in source:
                await self.send(audio)
            await self.finish()
        except StreamFinished:
            pass  # by whoever has heard enough
        except Exception as error:  # noqa: BLE001 (a source is anybody's, and whoever awaits events is told)
            if not self._ended:
                self._events.put_nowait(error)

    async def _run(self, socket: ClientConnection) -> None:
        """Go through connections until the server says that everything has been judged."""
        clock = asyncio.get_running_loop().time
        try:
            began = clock()
            while (reason := await self._converse(socket)) is not None:
                if clock() - began > LONGEST_PAUSE_S and not self._memory.overdue:
                    self._memory.stuck_since = None  # that connection was a good one
                socket, began = await self._reopen(reason), clock()
            self._events.put_nowait(None)
        except ClientError as error:
            self._events.put_nowait(error)
            raise
        finally:
            self._room.set()

    async def _converse(self, socket: ClientConnection) -> str | None:
        """Send and receive until this connection ends; return why, or None if it ended as it should."""
        sending = asyncio.create_task(pump(socket, self._memory, self._work))
        try:
            async for text in socket:
                if event := self._memory.note(parsed(text)):
                    self._events.put_nowait(event)
                if isinstance(event, Detection | Heartbeat):  # some audio is acknowledged
                    self._work.set()
                    self._room.set()
        except ConnectionClosed as error:
            if self.totals is not None:
                return None  # all was said but the last frames
            if error.rcvd is None:
                return "the connection broke"
            return why_closed(error.rcvd.code, error.rcvd.reason, self._memory.failed)
        finally:
            sending.cancel()
            await socket.close()
        return None if self.totals else "the server went away"

    async def _reopen(self, reason: str) -> ClientConnection:
        """Try again, ever more patiently, while there was progress within `retry_s`."""
        clock, attempt = asyncio.get_running_loop().time, 0
        while True:
            self._memory.stuck_since = self._memory.stuck_since or clock()
            if clock() - self._memory.stuck_since > self._retry_s:
                raise CannotConnect(f"gave up on {self.url} after {self._retry_s:g} s: {reason}")
            pause = min(0.1 * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1)  # noqa: S311 (spreads clients out)
            self._events.put_nowait(Interrupted(reason, pause))
            await asyncio.sleep(pause)
            attempt += 1
            try:
                return await self._open()
            except (OSError, ConnectionClosed) as error:
                reason = str(error)
            except StreamFailed as error:
                if error.field != TOKEN:
                    raise
                reason = str(error)
                self._memory.begin_anew()
            except NotNow as error:
                reason = str(error)
                await asyncio.sleep(min(error.retry_after, LONGEST_PAUSE_S))

    async def _open(self) -> ClientConnection:
        """Connect, configure, and be ready to send from where the server wants the stream to go on."""
        socket = self._socket = await dial(self.url, self._headers)
        try:
            ready = self._memory.ready = await introduce(socket, self.url, self._memory.hello())
        except BaseException:
            await socket.close()
            raise
        self._events.put_nowait(ready)
        self.connections += 1
        return socket
