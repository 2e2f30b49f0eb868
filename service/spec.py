"""What a session has to know of a model, and of the engine that runs it. Knows neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from models.operating import usual_point
from models.spans import USUAL_MS
from service.audio import SAMPLE_RATE
from service.detector import Rule
from service.errors import BadMessage, UnknownModel
from service.protocol import Configure, KeywordSettings, Method

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.counting import Count


@dataclass(frozen=True, slots=True)
class Spec:
    """What a session has to know of a model.

    Attributes:
        name: as in `/v1/models`.
        fingerprint: of its weights.
        config: shapes and labels.
        methods: of the operating points that may be chosen, by name, as `models.operating` calls them.
        calibration: as in `models.checkpoint.Checkpoint`.
        enrolled: rules of keywords of the client's own, as in `calibration`; their columns are last.
    """

    name: str
    fingerprint: str
    config: ModelConfig
    methods: Mapping[str, Method]
    calibration: Mapping[str, Any]
    enrolled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the operating points that may be chosen."""
        return tuple(self.methods)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the posteriors' columns."""
        return (*self.config.labels, *self.enrolled)

    @property
    def default_point(self) -> str:
        """The point that streams get."""
        return usual_point(self.points)

    def point(self, wish: Configure) -> str:
        """The operating point that a client asks for, by name, by method, or not at all.

        Raises:
            UnknownModel: there is none such, or it may not be chosen here.
        """
        if wish.point is not None and wish.point not in self.points:
            raise UnknownModel(f"this model has the points {', '.join(self.points)}", "point")
        named = self.points if wish.point is None else (wish.point,)
        fit = [point for point in named if wish.method in (None, self.methods[point])]
        if not fit:
            what = "this model" if wish.point is None else f"the point {wish.point}"
            raise UnknownModel(f"{what} has {', '.join(sorted({self.methods[point] for point in named}))}", "method")
        return self.default_point if self.default_point in fit else fit[0]

    def rule(self, word: str, wish: KeywordSettings) -> Rule:
        """A keyword's calibrated rule, changed as the client wishes."""
        known = self.enrolled if word in self.enrolled else self.calibration.get("keywords", {})
        usual = {"refractory_ms": self.calibration.get("refractory_ms", 500)} | dict(known.get(word, {}))
        asked = wish.model_dump(include={"threshold", "patience", "refractory_ms"}, exclude_none=True)
        return replace(calibrated(usual | asked, self.config), alone=word in self.enrolled)

    def rules(self, wish: Configure) -> dict[str, Rule]:
        """The rules of the keywords that a client asks for.

        Raises:
            BadMessage: for a keyword or an operating point that this model does not have.
        """
        self.point(wish)
        own = (*self.config.keywords, *self.enrolled)
        usual = self.config.keywords if wish.keywords is None else ()
        wishes = dict.fromkeys((*usual, *self.enrolled), KeywordSettings()) | (wish.keywords or {})
        if strange := next((word for word in wishes if word not in own), None):
            raise BadMessage(f"this model does not know {strange!r}, it knows {', '.join(own)}", f"keywords.{strange}")
        return {word: self.rule(word, settings) for word, settings in wishes.items() if settings.enabled}

    def settings(self, rule: Rule) -> KeywordSettings:
        """A rule in the words of the protocol."""
        refractory_ms = round(rule.refractory * self.config.token_samples * 1000 / SAMPLE_RATE)
        return KeywordSettings(threshold=rule.threshold, patience=rule.patience, refractory_ms=refractory_ms)


def calibrated(rule: Mapping[str, Any], config: ModelConfig) -> Rule:
    """A keyword's rule, as a checkpoint's calibration has it, on the clock of tokens."""
    token_ms = 1000 * config.token_samples / SAMPLE_RATE
    start_ms, end_ms = rule.get("span_ms", USUAL_MS)
    return Rule(
        threshold=rule.get("threshold", 0.6),
        patience=rule.get("patience", 2),
        refractory=round(rule["refractory_ms"] / token_ms),
        window=rule.get("window_tokens"),
        span=(start_ms / token_ms, end_ms / token_ms),
    )


class Vitals(Protocol):
    """What the engine knows of a stream at the moment its posteriors arrive."""

    @property
    def latency_ms(self) -> float:
        """Age of the newest judged audio."""

    @property
    def lag_ms(self) -> float:
        """Age of the oldest audio not yet judged."""

    @property
    def compute_s(self) -> float:
        """Time the model has spent on this stream."""

    @property
    def scale(self) -> float:
        """Factor on the delta thresholds."""

    @property
    def cache_bytes(self) -> int:
        """Memory inside the model."""

    @property
    def macs(self) -> Count:
        """Work since the stream began."""

    def work(self) -> list[float]:
        """Share of dense work done since the last call: stem, blocks in order, read-out."""
