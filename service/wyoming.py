"""The Wyoming door: wake words for Home Assistant's voice satellites, over TCP, on the same sessions.

An event is a line of JSON with `type`, then `data_length` bytes of JSON and `payload_length` bytes of audio. The
protocol knows no keys: whoever reaches the port may use it, so it stays closed unless the operator opens it.

    describe -> info        detect (names), audio-start, audio-chunk ... audio-stop -> detection | not-detected
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import numpy as np
from pydantic import ValidationError
from structlog.contextvars import bind_contextvars

from service.engine import clock
from service.enrolled import kept
from service.errors import BadMessage, Idle, Internal, UnsupportedAudio
from service.logs import log
from service.protocol import Close, Configure, Detection, Encoding, KeywordSettings, TooLong, WireError

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

    from service.server import Server
    from service.settings import Settings
    from service.stream import Stream

MAX_JSON: Final = 16_384
"""Bytes of an event's header, and of its data."""
LINGER_S: Final = 1.0
"""For how long a client that was told of its error may go on writing, and one that is left, reading."""
ENCODINGS: Final = {2: Encoding.S16LE, 4: Encoding.F32LE}
VERSION: Final = version("deltaspot")
"""Looked up once: it takes a file and a millisecond."""
ATTRIBUTION: Final = {"name": "deltaspot", "url": ""}


async def listen(server: Server, port: int) -> asyncio.Server:
    """Open the door."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        satellite = Satellite(server, writer)
        peer = writer.get_extra_info("peername") or (None,)  # it may be gone already
        bind_contextvars(request_id=uuid4().hex, peer=peer[0], path="wyoming")
        try:
            while event := await in_time(reader, server.settings):
                await satellite.hear(*event)
        except WireError as error:
            satellite.tell("error", {"text": error.message, "code": error.code.wire})
            satellite.fail(error)
            await satellite.leave()
            await linger(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it went, or the server stops
        except Exception:  # noqa: BLE001 (whatever it is, it ends this connection and no other)
            log.exception("a satellite's connection failed")
            satellite.fail(Internal("the server made a mistake; it is logged"))
        finally:
            await satellite.vanish()
            with suppress(OSError):
                writer.close()
            asyncio.get_running_loop().call_later(LINGER_S, writer.transport.abort)  # whether or not it reads the rest

    return await asyncio.start_server(serve, server.settings.host, port, limit=MAX_JSON)


async def linger(reader: StreamReader, writer: StreamWriter) -> None:
    """Read away what still comes: bytes unread at the close reset the connection, and the answer is lost with it."""
    with suppress(OSError, TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(LINGER_S):
            await writer.drain()
            writer.write_eof()
            while await reader.read(MAX_JSON):
                pass


async def in_time(reader: StreamReader, settings: Settings) -> tuple[str, dict[str, Any], bytes] | None:
    """The next event as `read_event` has it, if it comes whole and before anybody must think that the client is gone.

    Raises:
        Idle: it does not; a satellite that has nothing to say may ping.
    """
    try:
        async with asyncio.timeout(settings.idle_s):
            return await read_event(reader, settings.frame_bytes)
    except TimeoutError:
        raise Idle(f"no whole event came for {settings.idle_s:g} s; send ping during pauses") from None


async def read_event(reader: StreamReader, limit: int) -> tuple[str, dict[str, Any], bytes] | None:
    """The next event: type, data and payload; None at the end.

    Raises:
        BadMessage: for anything else.
        TooLong: for one beyond its limits.
    """
    try:
        line = await reader.readline()
    except ValueError:
        raise TooLong(f"the line of an event may have {MAX_JSON} bytes") from None
    if not line:
        return None
    header = _object(line)
    size, length = header.get("data_length") or 0, header.get("payload_length") or 0
    if not isinstance(size, int) or not isinstance(length, int) or size < 0 or length < 0:
        raise BadMessage("lengths are counts of bytes")
    if size > MAX_JSON or length > limit:
        raise TooLong(f"an event may have {MAX_JSON} bytes of data and {limit} of audio")
    data = header.get("data") or {}
    if not isinstance(data, dict):
        raise BadMessage("data is a JSON object", "data")
    data |= _object(await reader.readexactly(size)) if size else {}
    return str(header.get("type")), data, await reader.readexactly(length)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("an event is a line of JSON") from None
    if not isinstance(value, dict):
        raise BadMessage("an event is a JSON object")
    return value


class Satellite:
    """One connection; between audio-start and audio-stop it has a stream."""

    def __init__(self, server: Server, writer: StreamWriter) -> None:
        self._server, self._writer = server, writer
        self._names: list[str] | None = None
        self._stream: Stream | None = None
        self._telling: asyncio.Task[None] | None = None
        self._heard, self._wide, self._rest = 0, False, b""

    async def hear(self, kind: str, data: dict[str, Any], payload: bytes) -> None:
        """One event; those that are not for a wake word service are ignored, as the protocol asks.

        Raises:
            TimeoutError: the satellite does not read what it is told.
            WireError: it makes no sense, or there is no place for a stream.
        """
        if self._stream is not None:
            self._stream.last_heard = clock()  # whatever it says, it is there
        match kind:
            case "describe":
                self.tell("info", {"wake": [self._info()]})
            case "ping":
                self.tell("pong", data)
            case "detect":
                self._names = _names(data)
            case "audio-start":
                await self.leave()
                self._open(data)
            case "audio-chunk":
                if self._stream is None:
                    self._open(data)
                if self._stream is not None and payload:
                    await self._stream.audio(self._samples(payload))
            case "audio-stop":
                await self._finish()
        async with asyncio.timeout(self._server.settings.idle_s):
            await self._writer.drain()

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Send one event."""
        body = json.dumps(data).encode()
        header = {"type": kind, "version": VERSION, "data_length": len(body)}
        if not self._writer.is_closing():
            self._writer.write(json.dumps(header).encode() + b"\n" + body)

    def fail(self, error: WireError) -> None:
        """Note why the stream ends, or that there is none."""
        if self._stream is None:
            self._server.turned_away(error)
        else:
            self._stream.fail(error)

    async def vanish(self) -> None:
        """End the stream, if there is one, in its midst; Home Assistant does so once it was told of a word."""
        await self.leave(None if self._heard else "vanished")

    async def leave(self, outcome: str | None = None) -> None:
        """End the stream, if there is one, with this outcome unless it failed."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._stream is not None:
            self._server.close(self._stream, None if self._stream.error else outcome)
            self._stream = None

    def _open(self, data: dict[str, Any]) -> None:
        width = data.get("width", 2)
        if not isinstance(width, int) or width not in ENCODINGS:
            raise UnsupportedAudio(f"samples of {width} bytes; 2 and 4 are understood", "width")
        self._server.admit()
        try:
            configure = _configure(data, ENCODINGS[width], self._names, self._kept())
            self._stream = self._server.open(configure, self._server.guard.anyone)
        except BaseException:
            self._server.engine.places.cancel()
            raise
        self._heard, self._wide, self._rest = 0, width == 4, b""
        self._telling = asyncio.create_task(self._tell_detections(self._stream))

    def _samples(self, payload: bytes) -> bytes:
        """Audio as a stream takes it: whole numbers of 4 bytes, which it does not know, become floats."""
        if not self._wide:
            return payload
        data = self._rest + payload
        whole = len(data) // 4 * 4
        self._rest = data[whole:]
        return (np.frombuffer(data[:whole], "<i4") / 2**31).astype("<f4").tobytes()

    async def _tell_detections(self, stream: Stream) -> None:
        while not stream.over:
            self._tell_all(await stream.fetch())
        if stream.error is not None:
            self.tell("error", {"text": stream.error.message, "code": stream.code.wire})
            self._writer.close()

    def _tell_all(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Detection):
                self._heard += 1
                self.tell("detection", {"name": message.keyword, "timestamp": round(message.at_s * 1000)})

    async def _finish(self) -> None:
        if self._stream is None:
            return
        self._stream.tell(Close())
        await self._stream.drained()
        self._tell_all(self._stream.outbox)
        self._stream.outbox = []
        if not self._heard:
            self.tell("not-detected", {})
        await self.leave()

    def _info(self) -> dict[str, Any]:
        about = {"attribution": ATTRIBUTION, "installed": True, "version": VERSION}
        words = self._server.engine.find(None).spec.config.keywords + self._kept() if self._server.warm else ()
        models = [{**about, "name": word, "description": word, "phrase": word, "languages": ["en"]} for word in words]
        return {**about, "name": "deltaspot", "description": "Keyword spotting by changes", "models": models}

    def _kept(self) -> tuple[str, ...]:
        """Keywords that the server keeps beside the model's, for those who name them."""
        return kept(self._server.settings.keywords, self._server.engine.find(None).spec)


def _names(data: dict[str, Any]) -> list[str] | None:
    names = data.get("names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadMessage("names is a list of words", "names")
    return names


def _configure(data: dict[str, Any], encoding: Encoding, names: list[str] | None, own: tuple[str, ...]) -> Configure:
    """What a satellite said of its audio and its words, of which some are the server's own, checked as a client's."""
    try:
        return Configure(
            sample_rate=data.get("rate", 16_000),
            channels=data.get("channels", 1),
            encoding=encoding,
            keywords=None if names is None else {name: KeywordSettings() for name in names if name not in own},
            stored=tuple(name for name in dict.fromkeys(names or ()) if name in own),
            heartbeat_ms=60_000,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["loc"][0] in {"keywords", "stored"}:
            raise BadMessage(f"names: {first['msg']}", "names") from None
        raise UnsupportedAudio("audio of 8 to 48 kHz with up to 8 channels is understood") from None
