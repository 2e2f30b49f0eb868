"""Replicas of the server on a Ray cluster, behind Ray Serve's proxies.

    pip install -e ".[ray]"
    serve run --app-dir deploy/ray app:app            # on a machine of the cluster

The same application as `deltaspot serve`. An open stream counts as an ongoing request, so replicas follow the number
of streams; a stream whose replica dies resumes on another one. Settings come from the environment of the replicas, and
`DELTASPOT_SESSIONS` from that of `serve run`, too.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ray import serve

from service import logs
from service.app import create_app
from service.server import Server
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

SESSIONS = Settings().sessions
"""Streams that Serve hands to one replica at most; it admits fewer if it finds that it cannot keep up with them."""

PLANNED = min(400, SESSIONS)
"""Streams of one replica beyond which there is another: u S of the sizing guide in deploy/README.md."""


def check(server: Server) -> None:
    """See that a server is, or will be, of use.

    Raises:
        RuntimeError: it cannot go on; the log of the replica has the reason.
    """
    if server.state == "broken":
        raise RuntimeError("the server cannot go on; its log says why")


def build() -> FastAPI:
    """One replica's application. Serve asks for no readiness: a replica counts when its lifespan has begun."""
    server = Server(Settings())
    application = create_app(server)
    begin = application.router.lifespan_context

    @asynccontextmanager
    async def warm(app: FastAPI) -> AsyncIterator[Any]:
        async with begin(app) as state:
            while not server.ready:  # the server has no event for it
                check(server)
                await asyncio.sleep(0.1)
            yield state

    application.router.lifespan_context = warm
    return application


@serve.deployment(
    name="deltaspot",
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=SESSIONS,
    autoscaling_config={
        "min_replicas": 2,
        "max_replicas": 100,
        "target_ongoing_requests": PLANNED,
        "downscale_delay_s": 600,
    },
    graceful_shutdown_timeout_s=30,
    health_check_period_s=5,
)
@serve.ingress(build)
class Deltaspot:
    """A server without a socket of its own."""

    app: FastAPI
    """What `build` returned, from Serve."""

    def __init__(self) -> None:
        """Write the lines that `deltaspot serve` writes; this comes before `build`."""
        logs.configure()

    async def check_health(self) -> None:
        """Have Serve put another replica in the place of one that cannot go on."""
        check(self.app.state.server)

    async def pid(self) -> int:
        """Process of the replica that is asked, for those who want to look at it or to end it."""
        return os.getpid()


app = Deltaspot.bind()
