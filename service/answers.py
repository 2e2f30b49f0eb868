"""What REST answers with, one class each, and how it is made from the state of the server. Knows no HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, Field

from models.checkpoint import DENSE
from service.audio import SAMPLE_RATE
from service.protocol import KeywordSettings, Method
from service.windows import HOP, RULE

if TYPE_CHECKING:
    from service.engine import Hosted
    from service.server import Server
    from service.stream import Stream
    from service.windows import ClipModel


class ModelInfo(BaseModel):
    """One model that streams and clips may ask for."""

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    keywords: dict[str, KeywordSettings]
    points: tuple[str, ...]
    methods: dict[str, Method] = Field(description="method of each point")
    point: str = Field(description="the operating point that streams get")
    sample_rate: int
    hop_samples: int = Field(description="samples between two posteriors")
    cache_bytes: int = Field(description="memory of one stream, bytes")
    streams: bool = Field(description="false where only clips can be judged")

    @classmethod
    def of(cls, hosted: Hosted) -> Self:
        """Describe a model."""
        spec = hosted.spec
        return cls(
            name=spec.name,
            fingerprint=spec.fingerprint,
            labels=spec.config.labels,
            keywords={word: spec.settings(spec.rule(word, KeywordSettings())) for word in spec.config.keywords},
            points=spec.points,
            methods=dict(spec.methods),
            point=spec.default_point,
            sample_rate=spec.config.frontend.sample_rate,
            hop_samples=spec.config.token_samples,
            cache_bytes=hosted.cache.bytes_per_row,
            streams=True,
        )

    @classmethod
    def of_clips(cls, model: ClipModel) -> Self:
        """Describe a model for clips."""
        settings = KeywordSettings(threshold=RULE.threshold, patience=RULE.patience)
        return cls(
            name=model.name,
            fingerprint=model.fingerprint,
            labels=model.labels,
            keywords=dict.fromkeys(model.rules, settings),
            points=(DENSE,),
            methods={DENSE: "dense"},
            point=DENSE,
            sample_rate=SAMPLE_RATE,
            hop_samples=HOP,
            cache_bytes=0,
            streams=False,
        )


class SessionInfo(BaseModel):
    """One stream that is open."""

    session: str
    model: str
    point: str
    audio_s: float
    lag_ms: float
    detections: int

    @classmethod
    def of(cls, stream: Stream) -> Self:
        """Describe a stream."""
        session = stream.session
        return cls(
            session=session.id,
            model=stream.hosted.name,
            point=session.point,
            audio_s=session.audio_s,
            lag_ms=stream.vitals.lag_ms,
            detections=session.detections,
        )


class Ticket(BaseModel):
    """Opens streams for a short time, without a key."""

    ticket: str = Field(description="goes into the query of /v1/stream as `ticket`")
    expires_s: int


class Health(BaseModel):
    """The state of the process."""

    status: str
    sessions: int
    wait_ms: float = Field(description="how long streams wait for their turn, ms")

    @classmethod
    def of(cls, server: Server, status: str) -> Self:
        """Describe a process."""
        return cls(status=status, sessions=server.engine.places.used, wait_ms=server.engine.wait_s * 1000)
