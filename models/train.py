"""Training: streams in, weights out; resumable, the same for our data and the full public download.

AdamW, warm-up and cosine, exponential moving average of the weights, label smoothing, teachers' beliefs where there
are any, a second question (`models.naming`), and a penalty on how much each gated tensor moves from token to token,
which is what makes the delta gate worth having.

What a run is lies in `models.train_state`; what a stage minimises is its objective: `Dense` here, gates in the
loop in `models.gated`. Knows neither clock nor terminal: `train` hands its figures to whoever asks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import Checkpoint, save
from models.compose import Batch, Composer
from models.config import SILENCE, UNKNOWN, ModelConfig
from models.curves import draw_learning
from models.data import Corpus, DataError, load_corpus
from models.folding import network_of
from models.naming import Naming, Overheard
from models.precision import quick
from models.recipe import Recipe
from models.teachers import Teacher, taught
from models.train_state import STATE, Schedule, State, TrainingError, be_taught, how_made, save_state
from models.transformer import Gating, Past, StreamingKWT
from models.tutor import Tutor, tutored
from models.validation import Validation

MODEL, LOG, CURVES = "skwt.safetensors", "log.jsonl", "curves.png"
"""What a run leaves in its folder, beside its state."""
RESTLESS = ("stem", "filters")
"""Gates whose tensors may move: sound does, and filters that are asked not to learn to hear nothing."""
SMOOTHING = 0.98
"""Share that a figure keeps of its past, from step to step."""


LOOKED_AT = 0.25


class Movement:
    """Stands where the gates stand and measures how much each tensor moves between neighbouring tokens.

    The measure is mean |x_t - x_{t-1}| over mean |x|, so scaling a tensor down gains nothing. Each gate is
    looked at with probability `LOOKED_AT`: the penalty stays unbiased and costs a quarter of the time.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self.ratios: list[Tensor] = []

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Note the tensor's movement and hand it on unchanged."""
        if (
            window is None
            and not name.startswith(RESTLESS)
            and torch.rand((), generator=self.generator).item() < LOOKED_AT
        ):
            pairs = x[..., : x.shape[-2] // 2 * 2, :].unflatten(-2, (-1, 2))
            moved = (pairs[..., 1, :] - pairs[..., 0, :]).abs().mean(dtype=torch.float32)
            self.ratios.append(moved / (pairs[..., 0, :].abs().mean(dtype=torch.float32) + 1e-3))
        return x

    def penalty(self) -> Tensor:
        """Mean over the gates seen."""
        return torch.stack(self.ratios).mean() if self.ratios else torch.zeros(())


def task_loss(logits: Tensor, targets: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, N, K) to targets (B, N) or (B, N, K), weighted by how much each token is asked."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(0, 1), reduction="none", label_smoothing=smoothing
    )
    return (losses * batch.weights.flatten()).sum() / batch.weights.sum()


def asked(
    model: StreamingKWT, batch: Batch, gates: Gating, naming: Naming, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """Both questions put to a network behind some gates: losses of the labels and of the names."""
    heard = Overheard(gates)
    with quick():
        logits = model.run(batch.frames, Past(), Past(), heard)
        names = naming(heard.pooled)
    smoothing = schedule.label_smoothing
    return task_loss(logits, batch.beliefs, batch, smoothing), task_loss(names, batch.names, batch, smoothing)


class Streaming(nn.Module):
    """What stages have in common whose network streams."""

    RECIPE: ClassVar[Recipe] = Recipe()
    SCHEDULE: ClassVar[Schedule] = Schedule()

    def network(self, config: ModelConfig) -> StreamingKWT:
        """What is trained."""
        return network_of(config)

    def keep(self, state: State, validation: Validation, out: Path) -> dict[str, dict[str, Any]]:
        """Write the averaged weights as a checkpoint, and judge them at every operating point."""
        checkpoint = checkpoint_of(state, self.points())
        save(checkpoint, out / MODEL)
        return validation.judge(checkpoint)

    def points(self) -> dict[str, dict[str, float]]:
        """Operating points learned so far."""
        return {}


class Dense(Streaming):
    """The first stage: learn the task with no gates, in tensors that move little."""

    stage = "dense"
    pace = 1.0

    def __init__(self, config: ModelConfig, recipe: Recipe) -> None:
        super().__init__()
        self.naming = Naming(config.channels, config, recipe)

    def forward(
        self, model: StreamingKWT, batch: Batch, schedule: Schedule, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted cross-entropy over the asked tokens, plus the movement penalty; and figures for the log."""
        gates = Movement(generator)
        task, names = asked(model, batch, gates, self.naming, schedule)
        moved = gates.penalty()
        figures = {"loss": task.item(), "names": names.item(), "movement": moved.item()}
        return task + schedule.naming * names + schedule.movement * moved, figures

    def follow(self, figures: dict[str, float], progress: float) -> None:
        """Nothing is steered."""


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the trained ones; faster in the first steps."""
    keep = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mean.lerp_(weight, 1 - keep) if mean.is_floating_point() else mean.copy_(weight)


@dataclass(frozen=True, slots=True)
class Report:
    """Where a run is: steps done, smoothed figures, and a validation where one was due."""

    step: int
    figures: dict[str, float]
    validation: dict[str, Any] | None = None


def train(
    state: State, data: Path, out: Path, cache: Path, teachers: Sequence[Teacher] = (), tutors: Sequence[Tutor] = ()
) -> Iterator[Report]:
    """Train until the schedule's end, one step for each report taken.

    Every `report_every` steps, and at the end, the averaged weights are judged on the validation speakers, and
    the folder gets state, checkpoint, log and learning curves. Whoever stops taking reports can go on later from
    there, and reaches the same weights to the bit.

    Args:
        state: a new run, or one read back; changed in place.
        data: directory of clips and noise, see `models.data`.
        out: folder of the run.
        cache: folder for the data as pixels, read once.
        teachers: what else has a say in the targets.
        tutors: what else has a say in them, at every token.

    Raises:
        DataError: for data without the labels' clips.
        TrainingError: when the loss is no longer finite, or a run that was begun had other teachers.
    """
    be_taught(state, [f"teacher {t.digest}" for t in teachers] + [f"tutor {t.fingerprint}" for t in tutors])
    corpus = load_corpus(data, "training", cache)
    check(corpus, state.config)
    corpus = taught(corpus, data, state.config, teachers, cache)
    for tutor in tutors:
        tutor.check(state.config)
    shards = [Shard(corpus, state, tutors) for _ in range(state.schedule.shards)]
    validation = Validation(load_corpus(data, "validation", cache), state.config)
    out.mkdir(parents=True, exist_ok=True)
    forget_after(state.step, out / LOG)
    with ThreadPoolExecutor(len(shards)) as threads:
        while state.step < state.schedule.steps:
            seeds = torch.randint(2**62, (len(shards),), generator=state.generator).tolist()
            advance(state, list(threads.map(Shard.slope, shards, seeds)))
            due = state.step % state.schedule.report_every == 0 or state.step == state.schedule.steps
            yield Report(state.step, dict(state.figures), keep(state, validation, out) if due else None)


def share_cores(schedule: Schedule) -> None:
    """Give each of a step's shards the same part of this machine's cores, for as long as the process lives."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // schedule.shards))


@dataclass(frozen=True, slots=True)
class Slope:
    """A batch's loss, its gradients (None where a parameter has no part in it), and figures for the log."""

    loss: float
    gradients: Sequence[Tensor | None]
    figures: dict[str, float]


class Shard:
    """A part of every step: its own streams, composed and judged in a thread of its own.

    Its randomness comes from a seed handed in at every step, so it does not matter which thread is faster.
    """

    def __init__(self, corpus: Corpus, state: State, tutors: Sequence[Tutor] = ()) -> None:
        self.state, self.tutors, self.generator = state, tutors, torch.Generator()
        self.composer = Composer(corpus, state.config, state.recipe, self.generator)

    def slope(self, seed: int) -> Slope:
        """Gradients of new streams."""
        self.generator.manual_seed(seed)
        streams = -(-self.state.schedule.streams // self.state.schedule.shards)
        return slope(self.state, tutored(self.composer.batch(streams), self.tutors), self.generator)


def slope(state: State, batch: Batch, generator: torch.Generator) -> Slope:
    """Gradients of one batch; changes nothing."""
    loss, figures = state.objective(state.model, batch, state.schedule, generator)
    return Slope(loss.item(), torch.autograd.grad(loss, parameters(state), allow_unused=True), figures)


def mean_figures(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean over those that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: fmean(part[name] for part in parts if name in part) for name in names}


def parameters(state: State) -> list[nn.Parameter]:
    """What is learned: the network's parameters, then the objective's."""
    return [*state.model.parameters(), *state.objective.parameters()]


def advance(state: State, slopes: Sequence[Slope]) -> None:
    """One step of the optimizer, down the mean of some slopes."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule.rate(state.step) * group["pace"]
    loss = sum(one.loss for one in slopes) / len(slopes)
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {state.step}; resume from the last state, or lower the rate")
    for parameter, *parts in zip(parameters(state), *(one.gradients for one in slopes), strict=True):
        known = [part for part in parts if part is not None]
        parameter.grad = torch.stack(known).sum(dim=0) / len(slopes) if known else None
    nn.utils.clip_grad_norm_(state.model.parameters(), state.schedule.clip_norm)
    state.optimizer.step()
    update_average(state.average, state.model, state.step, state.schedule.average)
    figures = mean_figures([one.figures for one in slopes])
    state.objective.follow(figures, state.step / state.schedule.steps)
    state.step += 1
    for name, value in figures.items():
        state.figures[name] = state.figures.get(name, value) * SMOOTHING + value * (1 - SMOOTHING)


def keep(state: State, validation: Validation, out: Path) -> dict[str, Any]:
    """Judge the averaged weights, and write them, the run's state, its log and curves."""
    judged = state.objective.keep(state, validation, out)
    with (out / LOG).open("a") as log:
        log.write(json.dumps({"step": state.step, **state.figures, "validation": judged}) + "\n")
    save_state(state, out / STATE)
    draw_learning(out / LOG, out / CURVES)
    return judged


def checkpoint_of(state: State, points: Mapping[str, Mapping[str, float]]) -> Checkpoint:
    """The averaged weights with operating points."""
    weights = {name: tensor.numpy().copy() for name, tensor in state.average.state_dict().items()}
    return Checkpoint(state.config, weights, points, metadata=how_made(state))


def forget_after(step: int, log: Path) -> None:
    """Drop the log's lines of steps that will be done again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        log.write_text("".join(lines))


def check(corpus: Corpus, config: ModelConfig) -> None:
    """Refuse a corpus from which the labels cannot be learned.

    Raises:
        DataError: naming the labels without clips.
    """
    words = set(corpus.words.tolist())
    missing = [word for word in config.labels if word not in {SILENCE, UNKNOWN} and word not in words]
    if missing:
        raise DataError(f"no training clips of {', '.join(missing)}: each keyword needs a folder of its name")
    if not words - set(config.labels):
        raise DataError("no training clips of other words: without them every word would be a keyword")
