"""uvicorn's WebSocket with two changes that a thousand listeners and a hostile one ask for. Knows no streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    import asyncio

AHEAD = 8
"""Frames read ahead of the application before reading pauses; uvicorn pauses and resumes for every single one."""
LINGER_S = 3.0
"""Time in which a peer must have read the last bytes; one that never reads would hold its socket for ever."""


class Socket(WebSocketsSansIOProtocol):
    """One connection."""

    def send_receive_event_to_app(self) -> None:
        """Queue a whole message; reading goes on until `AHEAD` of them wait."""
        paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        self.read_paused = paused
        if not paused and self.queue.qsize() >= AHEAD:
            self.read_paused = True
            self.transport.pause_reading()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application is done with this connection; soon the system shall be, too."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER_S, self.transport.abort)
