"""The doors of a server on the web: WebSocket, REST, probes, metrics, documents, page. FastAPI lives here only."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route, WebSocketRoute
from structlog.contextvars import bound_contextvars

from service import clips, enrolling, live, wyoming
from service.answers import Health, ModelInfo, SessionInfo, Ticket
from service.asyncapi import document
from service.auth import Caller, Scope
from service.engine import clock
from service.errors import HTTP_STATUS, BadMessage, Capacity, Internal, Unauthorised, failed
from service.layers import LINE, Lingering, Mistakes, RequestIds, SecurityHeaders
from service.logs import log
from service.protocol import CloseCode, Configure, Encoding, Failed, KeywordFile, WireError, parse_keywords
from service.server import Server
from service.sockets import EXTENSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Send
    from starlette.types import Scope as Connection

PAGE: Final = Path(__file__).parent.parent / "client" / "web"
EXPOSED: Final = ("Retry-After", "X-Request-ID")
"""Headers of answers that pages of other origins may read."""
ANSWERS: Final[dict[int | str, dict[str, Any]]] = {status: {"model": Failed} for status in HTTP_STATUS.values()}
REFUSED: Final[dict[int | str, dict[str, Any]]] = {status: ANSWERS[status] for status in (401, 403, 429)}
KEY: Final = HTTPBearer(auto_error=False, description="an API key, of a server that has any")
OPEN: Final[dict[str, Any]] = {"security": [{}]}
"""How OpenAPI says that there are servers without keys, where nobody needs one."""
AUDIO_BODY: Final[dict[str, Any]] = {
    **OPEN,
    "requestBody": {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
}
"""How OpenAPI says that the body is a file."""
FORM_BODY: Final[dict[str, Any]] = {
    **OPEN,
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": enrolling.form_schema()}}},
}


def _nothing_unknown(request: Request) -> None:
    """A parameter that does not exist is a mistake, here as in a stream's messages."""
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise BadMessage(f"there is no parameter {name!r} here, but {', '.join(sorted(known)) or 'none'}", name)


async def _no_form(request: Request) -> None:
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise BadMessage("the body must be the file itself, and no form: curl --data-binary @FILE")


rest = APIRouter()


def create_app(server: Server) -> FastAPI:
    """Give a server its doors; models warm up once the app has started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(server.start())
        warming.add_done_callback(server.ended)
        port = server.settings.wyoming_port
        door = await wyoming.listen(server, port) if port is not None else None
        app.state.wyoming = door
        yield
        if door is not None:
            door.close()
        if not server.engine.places.draining:  # whoever was asked to stop has done it already
            await server.drain()
        await asyncio.wait([warming])
        await server.stop()

    app = FastAPI(
        title="deltaspot", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.server = server
    app.add_middleware(Mistakes, _confess)
    if origins := server.settings.origins:
        app.add_middleware(CORSMiddleware, origins, ("GET", "POST"), ("Authorization",), expose_headers=EXPOSED)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestIds)
    app.add_middleware(Lingering)
    for kind in (WireError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _refuse)
    app.include_router(rest)
    app.router.routes += [
        WebSocketRoute("/v1/stream", StreamDoor(server)),
        Route("/v1/stream", _no_upgrade, methods=["GET"]),
        Route("/metrics", _metrics),
        Route("/asyncapi.json", _asyncapi),
    ]
    if PAGE.is_dir():
        app.router.default = StaticFiles(directory=PAGE, html=True)  # mounted, it would come before 405
    return app


class StreamDoor:
    """`/v1/stream`: refuses before the upgrade, then hands over to service/live.py."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        headers, server = Headers(scope=scope), self._server
        await receive()
        try:
            ticket = QueryParams(scope["query_string"]).get("ticket")
            caller = server.guard.upgrade(headers, ticket)
            server.admit()
        except WireError as error:
            server.turned_away(error)
            await _answer(error)(scope, receive, send)
            return
        try:
            await send({"type": "websocket.accept"})
        except BaseException:
            server.engine.places.cancel()
            raise
        with bound_contextvars(caller=caller.name):
            await live.serve(server, caller, receive, send, scope["extensions"].get(EXTENSION))


def _the_server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


def _may(scope: Scope) -> Callable[..., AsyncIterator[Caller]]:
    """A dependency: the caller, if their key is for this."""

    async def check(request: Request, _key: Annotated[object, Depends(KEY)]) -> AsyncIterator[Caller]:
        caller = _the_server(request).guard.request(scope, request.headers)
        request.scope[LINE]["caller"] = caller.name
        _nothing_unknown(request)
        with bound_contextvars(caller=caller.name):
            yield caller

    return check


TheServer = Annotated[Server, Depends(_the_server)]
MayStream = Annotated[Caller, Depends(_may(Scope.STREAM))]
MayDetect = Annotated[Caller, Depends(_may(Scope.DETECT))]
MayAdmin = Annotated[Caller, Depends(_may(Scope.ADMIN))]


@rest.post("/v1/detect", responses=ANSWERS, openapi_extra=AUDIO_BODY, dependencies=[Depends(_no_form)])
async def detect(
    request: Request,
    server: TheServer,
    _caller: MayDetect,
    encoding: Annotated[Encoding | None, Query(description="of bare samples; unset for a file with a header")] = None,
    sample_rate: Annotated[int, Query(ge=8_000, le=48_000, description="of bare samples, Hz")] = 16_000,
    channels: Annotated[int, Query(ge=1, le=8, description="of bare samples")] = 1,
    model: Annotated[str | None, Query(max_length=64, description="one of `/v1/models`; unset for the first")] = None,
    point: Annotated[str | None, Query(max_length=32, description="one of its `points`; unset for its own")] = None,
    keywords: Annotated[
        str | None, Query(max_length=1_024, description="words and thresholds, such as `yes=0.3,no`; unset for all")
    ] = None,
) -> clips.ClipResult:
    """Find the keywords in one recording: WAV, FLAC, OGG, MP3, or bare samples."""
    wishes = None if keywords is None else parse_keywords(keywords)
    configure = Configure(
        sample_rate=sample_rate,
        channels=channels,
        model=model,
        point=point,
        keywords=wishes,
        scores=True,
        heartbeat_ms=60_000,
        coarsest=1,  # a clip has no deadline, and is heard alike whoever else is there
    )
    began, outcome = clock(), "failed"
    totals: dict[str, float | str] = {}
    try:
        server.admit(reserve=False)
        with server.tracing.span("clip") as span:
            result = await _judge(server, request, encoding, configure)
            span.note(audio_s=result.seconds, detections=len(result.detections))
        outcome = "judged"
        totals = {"seconds": result.seconds, "detections": len(result.detections), "time_ms": result.time_ms}
    except WireError as error:
        outcome = "failed" if error.code is CloseCode.INTERNAL else "refused"
        raise
    except ClientDisconnect:
        outcome = "vanished"
        raise
    finally:
        server.metrics.clip(outcome, clock() - began)
        log.info("clip", outcome=outcome, **totals)
    server.metrics.audio_received(result.seconds, chunks=0)
    return result


@rest.post("/v1/enroll", responses=ANSWERS, openapi_extra=FORM_BODY)
async def enroll(request: Request, server: TheServer, _caller: MayDetect) -> KeywordFile:
    """Make a keyword of one's own from a few recordings of it; the answer is its file, and nothing is kept here."""
    server.admit(reserve=False)
    async with server.bodies.whole(request.stream()) as data:
        return await enrolling.make_keyword(server, request.headers, data)


@rest.get("/v1/models", responses=REFUSED, openapi_extra=OPEN)
async def models(server: TheServer, _caller: MayDetect) -> list[ModelInfo]:
    """The models that streams and clips may ask for; the first one is the default."""
    streaming = [ModelInfo.of(hosted) for hosted in server.engine.hosted.values()]
    return [*streaming, *map(ModelInfo.of_clips, server.clip_models.values())]


@rest.get("/v1/sessions", responses=REFUSED, openapi_extra=OPEN)
async def sessions(server: TheServer, _caller: MayAdmin) -> list[SessionInfo]:
    """The streams that are open."""
    return [SessionInfo.of(stream) for stream in server.streams]


@rest.post("/v1/reload", responses={**REFUSED, 422: ANSWERS[422]}, openapi_extra=OPEN, status_code=204)
async def reload(server: TheServer, _caller: MayAdmin) -> None:
    """Read keys, certificate and all checkpoints again; open streams go on, with the checkpoint that they have."""
    await server.reload()


@rest.post("/v1/tickets", responses=REFUSED, openapi_extra=OPEN)
async def tickets(server: TheServer, caller: MayStream) -> Ticket:
    """A short-lived ticket for a browser, which cannot send a key with a WebSocket."""
    return Ticket(ticket=server.guard.ticket(caller), expires_s=server.settings.ticket_s)


@rest.head("/healthz", include_in_schema=False)
@rest.get("/healthz", responses={500: {"model": Health}})
async def healthz(server: TheServer, response: Response) -> Health:
    """Whether the process works; if not, restart it."""
    broken = server.state == "broken"
    response.status_code = 500 if broken else 200
    return Health.of(server, "broken" if broken else "ok")


@rest.head("/readyz", include_in_schema=False)
@rest.get("/readyz", responses={503: {"model": Health}})
async def readyz(server: TheServer, response: Response) -> Health:
    """Whether new streams are welcome: models warm, not draining, not behind; if not, which of these."""
    response.status_code = 200 if server.ready else 503
    return Health.of(server, server.state)


async def _no_upgrade(_request: Request) -> Response:
    why = "this is a WebSocket, and no upgrade was asked for; a proxy must pass the headers Upgrade and Connection on"
    raise HTTPException(426, why, {"Upgrade": "websocket"})


async def _metrics(request: Request) -> Response:
    body, content_type = _the_server(request).metrics.expose(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


async def _asyncapi(request: Request) -> Response:
    return JSONResponse(document(request.url.netloc, secure=request.url.is_secure))


async def _judge(server: Server, request: Request, raw: Encoding | None, configure: Configure) -> clips.ClipResult:
    """Read the body as far as it is allowed to go, and judge it; only now it needs a place."""
    async with server.bodies.whole(request.stream()) as data:
        server.admit(begun=True)
        return await clips.judge(server, data, raw, configure)


def _answer(error: WireError) -> JSONResponse:
    """An error as an HTTP answer."""
    headers = {}
    if isinstance(error, Capacity):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(failed(error).model_dump(exclude_none=True), HTTP_STATUS[error.code], headers)


async def _confess(scope: Connection, receive: Receive, send: Send) -> None:
    """Answer a request in which the server made a mistake."""
    answer = await _refuse(Request(scope), Internal("the server made a mistake; it is logged"))
    await answer(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    """Whatever went wrong, in the one form that is documented."""
    match error:
        case WireError():
            with bound_contextvars(**request.scope[LINE]):  # the dependency that knew the caller is over
                _the_server(request).turned_away(error)
            return _answer(error)
        case RequestValidationError():
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"][1:]))  # the first part says that it is in the query
            return await _refuse(request, BadMessage(f"{field}: {first['msg']}", field))
        case HTTPException():
            message = f"{error.detail}: {request.method} {request.url.path}"
            told = Failed(code=CloseCode.BAD_MESSAGE.wire, message=message)
            return JSONResponse(told.model_dump(exclude_none=True), error.status_code, error.headers)
        case _:
            return Response(status_code=400)  # the client is gone: nobody reads it
