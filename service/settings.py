"""Every setting of the server: read once from the environment (prefix `DELTASPOT_`), then frozen.

The only module that looks at the environment. Options of `deltaspot serve` override what stands there.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.engines import Engine
from models.operating import METHODS, Method
from service.protocol import Limits

MINUTE, DAY = 60.0, 86_400.0
PREFIX: Final = "DELTASPOT_"
OTHERS: Final = frozenset({"url", "key", "data", "require_shared"})
"""Variables with our prefix that clients, training and tests read."""


class Settings(BaseSettings):
    """How one server process runs; the name of a variable is the field's in capitals, after `DELTASPOT_`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8770, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    tls_cert: Path | None = Field(None, description="Certificate chain, PEM: https and wss instead of http and ws.")
    tls_key: Path | None = Field(None, description="Its key, PEM, if that is not in the same file.")
    model: Path | None = Field(None, description="Checkpoint that streams get; the shipped one if unset.")
    engine: Engine = Field("kernels", description="What runs the networks: our kernels, or torch.")
    device: str = Field("cpu", description="Where torch runs them: cpu, cuda, or cuda:N.")
    models: dict[str, Path] = Field({}, description='More checkpoints by name, as JSON: {"name": "path"}.')
    methods: tuple[Method, ...] = Field(METHODS, description="Methods that streams may choose among, as JSON.")
    sessions: int = Field(1_000, ge=1, le=100_000, description="Streams admitted at most; later ones get 503.")
    batch_ms: float = Field(
        20.0, ge=0, le=200, description="Longest wait for a batch to fill, ms; scaled by the share of `sessions` open."
    )
    queue_s: float = Field(2.0, gt=0, le=60, description="Audio of one stream not yet judged before reading pauses, s.")
    lag_s: float = Field(0.5, gt=0, le=60, description="Wait for a turn above which the server is busy, s.")
    behind_s: float = Field(15.0, gt=0, le=600, description="Age of unjudged audio that ends a stream, s.")
    frame_bytes: int = Field(1 << 20, ge=1_024, le=1 << 26, description="Longest binary frame, bytes.")
    stream_s: float = Field(DAY, gt=0, description="Audio that a connection may bring, s; clients resume on another.")
    idle_s: float = Field(
        MINUTE,
        gt=0,
        description="Longest time without a frame or Wyoming event, s; a posted clip must come within it, too.",
    )
    configure_s: float = Field(
        10.0, gt=0, description="Time within which a request's head, then `configure`, must come, s."
    )
    self_check_share: float = Field(0.002, ge=0, le=1, description="Share of tokens judged again without gates.")
    speed: float = Field(20.0, ge=1, description="Audio may arrive this many times faster than real time.")
    burst_s: float = Field(120.0, ge=1, description="Audio that may arrive at once, whatever the speed, s.")
    outbox: int = Field(1_000, ge=10, description="Messages waiting for a client that does not read, at most.")
    clip_bytes: int = Field(32 << 20, ge=1_024, description="Longest body of `/v1/detect` and `/v1/enroll`, bytes.")
    clip_s: float = Field(600.0, gt=0, description="Longest clip of `/v1/detect`, s.")
    clips: int = Field(4, ge=1, description="Clips decoded at the same time; later ones wait.")
    keywords: Path | None = Field(
        None, description="Directory of `deltaspot enroll`'s files, NAME.json, that clients may name in `stored`."
    )
    drain_s: float = Field(
        20.0,
        ge=0,
        description="After SIGTERM: for half of it streams and clips may end, in the rest streams are, in turn; s.",
    )
    keys: Path | None = Field(None, description="File of hashed API keys; without it everybody may do everything.")
    origins: list[str] = Field(
        [],
        description="Pages that may use the server beside its own, as JSON; without keys its own, too, if at a name.",
    )
    proxies: list[IPvAnyNetwork] = Field(
        [IPv4Network("127.0.0.1"), IPv6Network("::1")],
        description="Networks of proxies whose X-Forwarded-For and -Proto are believed, as JSON; `0.0.0.0/0` is any.",
    )
    ticket_secret: SecretStr | None = Field(None, description="Signs tickets for browsers; unset: a new one per start.")
    ticket_s: int = Field(60, ge=5, le=3_600, description="How long a ticket opens streams, s.")
    capture: Path | None = Field(None, description="Directory for feedback and its audio; nothing is kept if unset.")
    wyoming_port: int | None = Field(None, ge=0, le=65_535, description="Port of the Wyoming door; closed if unset.")
    otlp_endpoint: str = Field("", description="Collector of traces, OTLP over HTTP; none are made if unset.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="How the log is written: json, console, or auto, by whether it is a terminal."
    )


def limits(settings: Settings) -> Limits:
    """What clients are told of settings."""
    return Limits(
        frame_bytes=settings.frame_bytes, stream_s=settings.stream_s, idle_s=settings.idle_s, speed=settings.speed
    )


def unknown() -> list[str]:
    """Variables of the environment that nobody reads, though they look like settings."""
    known = OTHERS | Settings.model_fields.keys()
    ours = sorted(filter(_is_ours, os.environ))
    return [name for name in ours if name[len(PREFIX) :].lower() not in known]


def indoors(**given: Any) -> Settings:  # noqa: ANN401 (any setting)
    """Settings of a server without doors: what is `given`, else defaults; of the environment only the model counts."""
    model = os.environ.get(f"{PREFIX}MODEL")
    return Settings.model_construct(model=Path(model) if model else None, **given)


def handed_on(**given: str) -> dict[str, str]:
    """This process's environment for a server that a command starts for itself.

    Of the server's settings, only what runs the model is in it, and what is `given` by name.
    """
    runs = {f"{PREFIX}{name}" for name in ("MODEL", "ENGINE", "DEVICE")}
    kept = {name: value for name, value in os.environ.items() if not _is_ours(name) or name.upper() in runs}
    return kept | {f"{PREFIX}{name.upper()}": value for name, value in given.items()}


def _is_ours(name: str) -> bool:
    """Whether a variable looks like a setting."""
    return name.upper().startswith(PREFIX)
