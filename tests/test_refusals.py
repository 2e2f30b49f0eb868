"""What a client is told when a stream cannot begin or go on: which reasons stay, and what to do."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve

from client.connection import connect
from client.errors import CannotConnect, SourceError, StreamFailed
from client.handshake import dial
from service.protocol import CloseCode, Failed, Ready, parse_client
from tests.peer import PCM, Peer, greet, server


async def test_reason_that_stays_is_raised():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.say(Failed(code="bad_message", message="no such word", field="keywords.foo"))
        await peer.socket.close(CloseCode.BAD_MESSAGE)

    async with server(act) as (url, _peers), connect(url) as spotter:
        with pytest.raises(StreamFailed, match="no such word") as caught:
            async for _event in spotter:
                pass
        with pytest.raises(StreamFailed):
            await spotter.send(PCM)
    assert caught.value.code is CloseCode.BAD_MESSAGE
    assert caught.value.field == "keywords.foo"


async def test_refused_settings_are_raised_at_once():
    async def act(peer: Peer) -> None:
        await peer.say(Failed(code="bad_message", message="no such model", field="model"))
        await peer.socket.close(CloseCode.BAD_MESSAGE)

    async with server(act) as (url, _peers):
        with pytest.raises(StreamFailed, match="no such model"):
            async with connect(url, model="other"):
                pass


async def test_nobody_there_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CannotConnect, match="no server answers"):
        async with connect(f"127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    ("status", "word"),
    [(401, "key"), (403, "may not"), (404, "no stream"), (426, "proxy"), (502, "room"), (503, "room")],
)
async def test_refusal_before_the_upgrade_is_explained(status, word):
    def refuse(connection, _request):
        return connection.respond(HTTPStatus(status), "no")

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect, match=word):
            async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", key="k"):
                pass


async def test_what_the_server_says_of_a_refusal_is_told():
    def refuse(connection, _request):
        return connection.respond(503, Failed(code="capacity", message="no model is ready yet").model_dump_json())

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect, match=r": no model is ready yet \(HTTP 503\)$"):
            async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"):
                pass


async def test_wrong_path_is_suspected(running):
    with pytest.raises(CannotConnect, match="or the path is not /v1/stream"):
        async with connect(f"{running.http}/foo"):
            pass


@pytest.mark.parametrize(("told", "wait_s"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), (None, 1.0)])
async def test_when_to_ask_again_may_be_told_in_any_form(told, wait_s):
    def refuse(connection, _request):
        response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no")
        if told:
            response.headers["Retry-After"] = told
        return response

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect) as refused:
            async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"):
                pass
    assert refused.value.retry_after == wait_s


async def test_server_that_stays_away_is_given_up():
    async def act(peer: Peer) -> None:
        await greet(peer)
        listening.close(close_connections=False)
        peer.socket.transport.abort()

    async def handle(socket: ServerConnection) -> None:
        await act(Peer(socket, parse_client(await socket.recv())))

    listening = await serve(handle, "127.0.0.1", 0)
    async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", retry_s=0.2) as spotter:
        with pytest.raises(CannotConnect, match="gave up"):
            async for _event in spotter:
                pass
    await listening.wait_closed()


@pytest.mark.parametrize(
    ("answer", "error"), [(b"", ConnectionError), (b"HTTP/1.", ConnectionError), (b"SSH-2.0\r\n", CannotConnect)]
)
async def test_server_that_stops_in_the_handshake_is_no_stranger(answer, error):
    async def vanish(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(vanish, "127.0.0.1", 0) as listening:
        with pytest.raises(error):
            await dial(f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/stream", {})


async def test_source_of_another_rate_is_refused_before_it_is_misheard():
    class Microphone:
        rate = 48_000

        async def __aiter__(self):
            yield PCM

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.wait_closed()

    async with server(act) as (url, peers), connect(url) as spotter:
        with pytest.raises(SourceError, match="48000 Hz and the stream 16000"):
            spotter.play(Microphone())
    assert not peers[0].audio


async def test_later_messages_are_ignored_and_nonsense_is_not():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.send('{"type": "of a later version", "x": 1}')
        await peer.socket.send('{"type": "heartbeat"}')
        await peer.socket.wait_closed()

    async with server(act) as (url, _peers), connect(url) as spotter:
        assert isinstance(await anext(spotter), Ready)
        with pytest.raises(StreamFailed, match="cannot read"):
            await anext(spotter)
