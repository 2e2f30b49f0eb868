"""The wire format of `/v1/stream`, one class per message, with the codes of service/codes.py; both ends import it.

Binary frames are audio; a text frame is one JSON object with a `type`. Times are stream time: seconds since the first
sample, or samples per channel at the client's rate. A server refuses what it does not know; a client ignores it, so
that fields, types and warnings of a later server do no harm.

Knows nothing of sockets, sessions or models.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator

from service.codes import CloseCode, WarningCode, WireError

PROTOCOL: Final = 1
"""The version of this format; it changes only when an old client would break."""
MAX_TEXT_BYTES: Final = 65_536
"""Longest text frame that is read at all, in bytes."""
MOST: Final = 64
"""Keywords that a stream or clip may ask for."""
LATER: Final = {"union_tag_invalid", "enum"}
"""What pydantic says of a message, and of a warning, that this version does not know."""

Name = Annotated[str, Field(max_length=32)]
Seconds = Annotated[float, Field(ge=0, description="stream time, s")]
Samples = Annotated[int, Field(ge=0, lt=2**53, description="samples per channel at the client's rate")]
Share = Annotated[float, Field(ge=0, le=1, description="share, 0 to 1")]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A coordinate: those of real keywords are below 10, and the squares of far greater ones infinite."""
Method = Literal["dense", "delta", "pruned", "delta+pruned"]
"""What an operating point leaves out: nothing, what moves little, weak scores and heads, or both."""
Signed = Annotated[float, Field(le=1, description="share, at most 1; below 0 if more was done than the baseline")]


class BadMessage(WireError):
    """A text frame that is no message of this protocol, or not at this moment."""

    code = CloseCode.BAD_MESSAGE


class TooLong(WireError):
    """A frame, a body or a clip beyond its limit."""

    code = CloseCode.TOO_LONG


class Strict(BaseModel):
    """No unknown field, no coercion, no NaN, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Encoding(StrEnum):
    """How a sample is written; more than one channel is interleaved."""

    S16LE = "s16le"
    F32LE = "f32le"
    MULAW = "mulaw"
    ALAW = "alaw"


class KeywordSettings(Strict):
    """How one keyword is detected; what is left out stays as the model was calibrated."""

    threshold: Share | None = Field(None, description="smoothed posterior that counts as a hit, 0 to 1")
    patience: int | None = Field(None, ge=1, le=100, description="consecutive hits that make a detection, tokens")
    refractory_ms: int | None = Field(None, ge=0, le=60_000, description="silence after a detection, ms of stream time")
    enabled: bool = Field(True, description="whether it is detected at all")


class Enrolled(Strict):
    """A keyword of one's own, as `deltaspot enroll` writes it."""

    name: str = Field(min_length=1, max_length=32, description="no label of the model's")
    fingerprint: str = Field(max_length=64, description="of the model that it was made with, and no other's")
    recordings: int = Field(ge=1, le=10, description="how many it was made of")
    prototype: tuple[Number, ...] = Field(max_length=1_024, description="their mean embedding")
    weights: tuple[Number, ...] = Field(max_length=1_025, description="an embedding's, that set it apart, and a bias")
    threshold: Share = Field(0.5, description="smoothed score that counts as a hit, 0 to 1")


class KeywordFile(Enrolled):
    """The same, as a file and `/v1/enroll` hold it."""

    format: Literal["deltaspot-keyword-3"] = "deltaspot-keyword-3"

    @property
    def keyword(self) -> Enrolled:
        """What `configure.enrolled` takes."""
        return Enrolled(**self.model_dump(exclude={"format"}))


class Resume(Strict):
    """Where a broken stream goes on, on any replica."""

    token: str = Field(max_length=8_192, description="`checkpoint.token` of the newest message that had one")
    sample: Samples = Field(lt=2**52, description="stream position of the first sample that will be sent now")


class Checkpoint(Strict):
    """Everything before `sample` has been judged and told; what a client needs to go on elsewhere."""

    sample: Samples
    token: str = Field(max_length=8_192, description="opaque; goes back in `configure.resume`")


class Configure(Strict):
    """First message of a client.

    Sent again, whole, as what it leaves out has its default, it may change all but audio format, model, own keywords
    and `resume`.
    """

    type: Literal["configure"] = "configure"
    protocol: int = Field(PROTOCOL, ge=PROTOCOL, le=PROTOCOL)
    sample_rate: int = Field(16_000, ge=8_000, le=48_000, description="Hz")
    encoding: Encoding = Encoding.S16LE
    channels: int = Field(1, ge=1, le=8, description="interleaved; they are averaged")
    model: str | None = Field(None, max_length=64, description="one of `/v1/models`; the default if left out")
    point: str | None = Field(None, max_length=32, description="operating point of the model, such as `dense`")
    method: Method | None = Field(None, description="a point of this method, unless `point` names one of it")
    coarsest: float = Field(4.0, ge=1, le=16, description="largest factor on delta thresholds if the server is busy")
    keywords: dict[str, KeywordSettings] | None = Field(None, max_length=MOST, description="only these; left out: all")
    enrolled: tuple[Enrolled, ...] = Field((), max_length=8, description="one's own; `keywords` may change settings")
    stored: tuple[Name, ...] = Field((), max_length=8, description="the server's own, detected as those of `enrolled`")
    scores: bool = Field(False, description="send every token's posteriors")
    heartbeat_ms: int = Field(1_000, ge=100, le=60_000, description="stream time between heartbeats, ms")
    preroll_ms: int = Field(0, ge=0, le=3_000, description="audio before a word to send with it, ms; 0: no clip")
    resume: Resume | None = None


def _whichever(value: object, check: Callable[[Any], int | str]) -> int | str:
    """Check a marker's name; pydantic would blame what is no number for that alone, at a field that is none."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("Input should be a number from 0, or text of at most 64 characters") from None


class Marker(Strict):
    """Sent back by the server once every sample before it has been judged."""

    type: Literal["marker"] = "marker"
    id: Annotated[
        Annotated[int, Field(ge=0, lt=2**53)] | Annotated[str, Field(max_length=64)], WrapValidator(_whichever)
    ]


class Flush(Strict):
    """Judge what is left in the buffers as if silence followed; the stream goes on at the next whole token."""

    type: Literal["flush"] = "flush"


class Reset(Strict):
    """Forget all audio and detections so far; stream time goes on."""

    type: Literal["reset"] = "reset"


class Keepalive(Strict):
    """Nothing to say, still here."""

    type: Literal["keepalive"] = "keepalive"


class Feedback(Strict):
    """What a person says of a detection; kept for calibration if the operator wants it."""

    type: Literal["feedback"] = "feedback"
    detection: int = Field(ge=0, description="`detection.id`")
    correct: bool


class Close(Strict):
    """No more audio: judge everything and half a second of silence, tell it, send `closed`, close with 1000."""

    type: Literal["close"] = "close"


class Limits(Strict):
    """What the server allows this stream."""

    frame_bytes: int = Field(gt=0, description="longest binary frame, bytes")
    stream_s: float = Field(gt=0, description="audio that a connection may bring, s; the stream resumes on another")
    idle_s: float = Field(gt=0, description="longest time without a frame, s")
    speed: float = Field(gt=0, description="audio may arrive this many times faster than real time")


class Ready(Strict):
    """Answer to `configure`: audio may be sent."""

    type: Literal["ready"] = "ready"
    protocol: int = PROTOCOL
    session: str = Field(description="names the stream in logs; survives a resume")
    model: str
    fingerprint: str = Field(description="of the model's weights and settings")
    labels: tuple[str, ...] = Field(description="order of `scores.posteriors`")
    keywords: dict[str, KeywordSettings] = Field(description="those that are detected, with every setting in force")
    point: str = Field(description="operating point in force")
    points: tuple[str, ...] = Field(description="those that may be chosen")
    methods: dict[str, Method | Name] = Field({}, description="method of each of `points`; one may be new")
    hop_samples: int = Field(gt=0, description="16 kHz samples between two posteriors")
    replay_samples: Samples = Field(description="how far before a checkpoint a resuming client begins")
    sample: Samples = Field(0, description="position that the next audio has in the stream")
    limits: Limits


class Detection(Strict):
    """A keyword was heard, once."""

    type: Literal["detection"] = "detection"
    id: int = Field(ge=0, description="counts from 0 in a stream")
    keyword: str
    score: Share = Field(description="highest smoothed posterior of the word so far")
    start_s: Seconds = Field(description="where the word seems to begin, s")
    end_s: Seconds = Field(description="where the word seems to end, s")
    at_s: Seconds = Field(description="end of the audio that decided it, s")
    latency_ms: float = Field(ge=0, description="from that audio's arrival to this message, ms of wall time")
    checkpoint: Checkpoint
    clip: str | None = Field(None, description="base64 of 16 kHz s16le audio from `start_s - preroll_ms` to `at_s`")


class Scores(Strict):
    """Posteriors of the newest tokens, oldest first."""

    type: Literal["scores"] = "scores"
    at_s: Seconds = Field(description="end of the audio behind the newest row, s")
    hop_s: float = Field(gt=0, description="time between two rows, s")
    posteriors: list[list[float]] = Field(description="(tokens, labels), each 0 to 1")
    work: list[float] = Field(description="share of dense work done in these tokens: stem, blocks in order, read-out")


class Heartbeat(Strict):
    """How the stream is doing, every `heartbeat_ms` of stream time."""

    type: Literal["heartbeat"] = "heartbeat"
    at_s: Seconds
    lag_ms: float = Field(ge=0, description="age of the oldest audio not yet judged, ms of wall time")
    real_time_factor: float = Field(ge=0, description="compute time spent on this stream per second of its audio, s/s")
    macs_done: int = Field(ge=0, description="multiply-accumulates since the stream began")
    macs_skipped_vs_window: Signed = Field(description="against recomputing a whole window at every token")
    macs_skipped_vs_causal: Signed = Field(description="against dense arithmetic on new tokens only")
    skipped: dict[str, Signed] = Field(
        {},
        description="share of the window baseline not done, by reason: window, delta (input did not move, "
        "units that stay zero included), score (dropped), head",
    )
    delta_scale: float = Field(ge=0, description="factor on delta thresholds in force; above 1 when the server is busy")
    cache_bytes: int = Field(ge=0, description="memory of this stream inside the model, bytes")
    checkpoint: Checkpoint


class Warned(Strict):
    """Something the client may want to know; the stream goes on."""

    type: Literal["warning"] = "warning"
    code: WarningCode
    message: str


class Failed(Strict):
    """Why the stream ends now; the close code says the same as a number."""

    type: Literal["error"] = "error"
    code: str = Field(description="a close code's name in lower case")
    message: str
    field: str | None = Field(None, description="the field at fault, as a dotted path")


class Totals(Strict):
    """What this connection had, in numbers; one that it resumed is not in them, but what was replayed is."""

    audio_s: float = Field(ge=0, description="audio judged, s")
    samples: Samples = Field(description="audio received, in samples per channel at the client's rate")
    chunks: int = Field(ge=0, description="binary frames received")
    tokens: int = Field(ge=0, description="steps of the model")
    detections: int = Field(ge=0)
    macs_done: int = Field(ge=0)
    macs_skipped_vs_window: Signed = 0.0
    macs_skipped_vs_causal: Signed = 0.0


class Closed(Strict):
    """Last message of every stream that was ready, whatever ended it but a break of the WebSocket itself.

    That has codes of its own: 1002 and 1007 for what is no WebSocket message, 1009 for a frame of more than twice
    `limits.frame_bytes`.
    """

    type: Literal["closed"] = "closed"
    reason: str = Field(description="a close code's name in lower case")
    totals: Totals


ClientMessage = Configure | Marker | Flush | Reset | Keepalive | Feedback | Close
ServerMessage = Ready | Detection | Scores | Marker | Heartbeat | Warned | Failed | Closed

_client: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
_server: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])


def parse_client(text: str | bytes) -> ClientMessage:
    """One text frame from a client -> its message.

    Raises:
        BadMessage: naming the first field at fault.
        TooLong: without looking at it.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise TooLong(f"a text frame may have {MAX_TEXT_BYTES} bytes, this one has {len(text)}")
    try:
        return _client.validate_json(text)
    except ValidationError as error:
        raise _bad(error) from None


def encode(message: ServerMessage) -> bytes:
    """A message -> one text frame; `model_dump_json` makes the same, but takes the detour over a string."""
    return message.__pydantic_serializer__.to_json(message, exclude_none=True)


def parse_server(text: str | bytes) -> ServerMessage | None:
    """One text frame from a server -> its message, less fields of a later version; None for a type or code of one.

    Raises:
        BadMessage: naming the first field at fault.
    """
    try:
        return _server.validate_json(text, extra="ignore")
    except ValidationError as error:
        if error.errors(include_input=False, include_url=False)[0]["type"] in LATER:
            return None
        raise _bad(error) from None


def parse_keywords(text: str) -> dict[str, KeywordSettings]:
    """Words between commas, with thresholds or without, such as `yes=0.3,no` -> `configure.keywords`.

    Raises:
        BadMessage: for a threshold that is none, where a word is missing, and for more than `MOST`.
    """
    wishes = {}
    for part in text.split(","):
        word, equals, number = map(str.strip, part.partition("="))
        try:
            wishes[word] = KeywordSettings(threshold=float(number) if equals else None)
        except ValueError:
            raise BadMessage(f"a threshold is a number from 0 to 1, not {number!r}", "keywords") from None
        if not word:
            raise BadMessage(f"keywords are words between commas, such as yes=0.3,no; not {text!r}", "keywords")
    if len(wishes) > MOST:
        raise BadMessage(f"there may be {MOST} keywords, these are {len(wishes)}", "keywords")
    return wishes


def _bad(error: ValidationError) -> BadMessage:
    """Pydantic's first complaint, without the input: it may be hostile or private."""
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"].startswith("union_tag"):
        names = first.get("ctx", {}).get("expected_tags", "'configure', 'flush' and others")
        return BadMessage(f"a message needs its `type`, which is one of {names}", "type")
    path = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ")  # of what this module itself refuses
    return BadMessage(f"{path}: {message}" if path else message, path or None)
