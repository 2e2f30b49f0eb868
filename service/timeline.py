"""The clock of one stream: samples at the client's rate, 16 kHz positions, and tokens. Knows no wall clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.audio import SAMPLE_RATE

if TYPE_CHECKING:
    from models.config import ModelConfig


class Timeline:
    """Where tokens lie in a stream; positions are 16 kHz samples since the stream began.

    Attributes:
        start: samples of the stream, at the client's rate, that came before this connection.
        origin: position at which token 0 would begin, if nothing had been flushed or reset since.
    """

    def __init__(self, config: ModelConfig, sample_rate: int, start: int) -> None:
        self._rate, self._token = sample_rate, config.token_samples
        self._overlap = config.frontend.window - config.frontend.hop
        self._receptive = config.receptive_samples
        self.start = start
        self.origin = self.position(0)

    @property
    def replay_samples(self) -> int:
        """Audio that reaches a posterior, in whole tokens, at the client's rate."""
        tokens = self._receptive // self._token + 1
        return -(-tokens * self._token * self._rate // SAMPLE_RATE)

    def position(self, samples: int) -> int:
        """Position of the sample that comes after this many of the connection, at the client's rate."""
        return round((self.start + samples) * SAMPLE_RATE / self._rate)

    def received(self, position: int) -> int:
        """Samples of the stream, at the client's rate, before a position."""
        return max(0, -(-position * self._rate // SAMPLE_RATE))

    def begin(self, tokens: int) -> int:
        """Position at which token number `tokens` begins."""
        return self.origin + tokens * self._token

    def end_s(self, tokens: float) -> float:
        """Stream time at which this many tokens, or parts of them, are complete, in seconds."""
        return max(0.0, (self.origin + tokens * self._token + self._overlap) / SAMPLE_RATE)

    def tokens(self, position: int) -> int:
        """Whole tokens before a position."""
        return max(0, round((position - self.origin) / self._token))

    def aligned(self, tokens: int, samples: int, *, ahead: bool = False) -> int:
        """The origin by which token number `tokens` begins after `samples`; `ahead`: its first window is padding."""
        return self.position(samples) - tokens * self._token - (self._overlap if ahead else 0)
