"""`deltaspot train`: recordings in, a checkpoint out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.cache import layout
from models.checkpoint import load_checkpoint
from models.clip_stage import TUTOR, Clip
from models.config import SILENCE, UNKNOWN, ModelConfig
from models.data import FRONTEND
from models.gated import TARGET, Gated
from models.teachers import load_teacher
from models.train import MODEL, Dense, Report, share_cores, train
from models.train_state import (
    STATE,
    State,
    TrainingError,
    load_state,
    new_state,
    read_settings,
)
from models.tutor import load_tutor
from service.commands.options import data_option
from service.commands.train_options import Plan, changed, read_folds, read_words

app = typer.Typer(add_completion=False)


class Stage(StrEnum):
    """What a run minimises."""

    DENSE = "dense"
    GATED = "gated"
    CLIP = "clip"


KINDS: Final[Mapping[str, type[Dense | Gated | Clip]]] = {kind.stage: kind for kind in (Dense, Gated, Clip)}
"""What each stage minimises."""


@app.command("train")
def train_command(
    data: Annotated[Path, data_option("Folder with clips and noise, or their tars.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, state, log and curves.")],
    stage: Annotated[
        Stage | None,
        typer.Option(
            help="Dense, as if left out: from nothing. Gated: on from a checkpoint, gates learned. Clip: a "
            "convolutional network that hears single seconds whole, to be a --tutor."
        ),
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from; the gated stage needs one.")] = None,
    keywords: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Words of DATA to spot, such as marvin,sheila; if left out, those of --init, or the ten of Speech "
            "Commands. Dense and clip stage; with --resume they must be the run's.",
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint, ours or stock, that has a say in the targets; may be repeated."),
    ] = None,
    tutor: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoint of ours, or network of the clip stage, that hears what the student hears, and has a say "
            "at every token; may be repeated."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, as it was set up.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")] = None,
    fold: Annotated[
        str,
        typer.Option(help="Sub-tokens of each layer, such as 1,1,2,2,1,1; dense stage only. What folds begins anew."),
    ] = "",
    target: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help=f"Share of the causal work to aim at, {TARGET} if left out. Gated stage only."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON or TOML with other settings: sections model, recipe and schedule, fields as models/config.py, "
            "models/recipe.py and models/train_state.py have them. Options go before it.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data; runs repeat to the bit.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for the data as pixels; OUT/cache if left out.")] = None,
) -> None:
    """Train a checkpoint from recordings, resumable; the same command works on the full public Speech Commands.

    DATA holds <word>/<speaker>_nohash_<take>.wav (or flac, ogg, opus, jpg) at any depth or in tar archives, and noise
    in _background_noise_. Words that are no keyword are unknown words; speakers are split by the published rule.
    """
    words = read_words(keywords) if keywords is not None else ()
    if resume:
        if fold or any(asked is not None for asked in (steps, seed, init, rate, target, config)):
            raise TrainingError(
                "--resume goes on as the run was set up; leave out --steps, --seed, --init, --rate, --fold, --target, "
                "--config"
            )
        state = go_on(out, stage, words)
    else:
        if (out / STATE).exists():
            raise TrainingError(f"{out} holds a run already; --resume goes on with it, another --out starts anew")
        stage = stage or Stage.DENSE
        state = begin(stage, init, steps, seed, rate, read_folds(fold), words=words, target=target, settings=config)
    teachers = [load_teacher(path) for path in teacher or ()]
    if tutor and state.objective.stage == Stage.CLIP:
        raise TrainingError("a network of the clip stage is a tutor, and has none: leave out --tutor")
    tutors = [load_tutor(path) for path in tutor or ()]
    share_cores(state.schedule)
    console = Console(markup=False)
    console.print(f"{state.objective.stage} stage, steps {state.step} to {state.schedule.steps}; reading {data}")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=state.schedule.steps, completed=state.step)
        for report in train(state, data, out, cache or out / "cache", teachers, tutors):
            progress.update(bar, completed=report.step, description=described(report.figures))
            if report.validation:
                console.print(judged(report), soft_wrap=True)
    console.print(what_next(state, data, out), soft_wrap=True)


def go_on(out: Path, stage: Stage | None = None, words: tuple[str, ...] = ()) -> State:
    """The run in a folder, of a stage and of keywords where any are named.

    Raises:
        TrainingError: where there is none, or it is of another stage, or of other keywords.
    """
    settings = read_settings(out / STATE)
    if stage not in (None, settings["stage"]):
        raise TrainingError(f"the run in {out} is of the {settings['stage']} stage: leave out --stage")
    if words and sorted(words) != sorted(known := settings["config"].keywords):
        raise TrainingError(f"the run in {out} learns {', '.join(known)}: other keywords need a folder of their own")
    return load_state(out / STATE, KINDS[settings["stage"]](settings["config"], settings["recipe"]))


def begin(
    stage: Stage,
    init: Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    rate: float | None = None,
    folds: tuple[int, ...] = (),
    *,
    words: tuple[str, ...] = (),
    target: float | None = None,
    settings: Path | None = None,
) -> State:
    """A new run of a stage, of which a tenth at most warms up. No keyword is named among the other words.

    Raises:
        TrainingError: for what the stage does not do, or not without a checkpoint.
    """
    _check(stage, init, folds, words, target)
    start = load_checkpoint(init) if init else None
    kind = KINDS[stage]
    plan = Plan(start.config if start else ModelConfig(), kind.RECIPE, kind.SCHEDULE)
    plan = changed(plan, settings) if settings else plan
    if start and plan.model != start.config:
        raise TrainingError("the model's shape comes with --init: leave the section model out of --config")
    config = shape(plan.model, folds, words if words or start else plan.model.keywords)
    recipe = replace(plan.recipe, named=tuple(word for word in plan.recipe.named if word not in config.labels))
    asked: dict[str, Any] = {"steps": steps, "seed": seed, "learning_rate": rate}
    schedule = replace(plan.schedule, **{name: value for name, value in asked.items() if value is not None})
    if stage is Stage.CLIP and schedule.shards > 1:
        raise TrainingError("the clip stage takes one shard: its norms are of a whole batch")
    schedule = replace(schedule, warmup=min(schedule.warmup, schedule.steps // 10))
    points = start.points if start else None
    objective = Gated(config, recipe, points, target or TARGET) if kind is Gated else kind(config, recipe)
    return new_state(config, recipe, schedule, objective, start)


def _check(
    stage: Stage, init: Path | None, folds: tuple[int, ...], words: tuple[str, ...], target: float | None
) -> None:
    """Refuse what a stage does not do.

    Raises:
        TrainingError: saying what to name, or leave out.
    """
    gated = stage is Stage.GATED
    if gated and (folds or words):
        raise TrainingError("--fold and --keywords are for the dense stage; the gated one keeps its checkpoint's")
    if stage is Stage.CLIP and (folds or init):
        raise TrainingError("--fold and --init are for networks that stream; the clip stage begins with nothing")
    if gated and init is None:
        raise TrainingError("the gated stage goes on from a checkpoint, such as the dense stage's: name it with --init")
    if target is not None and not gated:
        raise TrainingError("--target is for the gated stage; no other leaves work out")


def shape(config: ModelConfig, folds: tuple[int, ...] = (), words: tuple[str, ...] = ()) -> ModelConfig:
    """The shape of a model with other folds and keywords, where any are given.

    Raises:
        ConfigError: for folds or keywords that no model can have, and sizes that the compiled step cannot have.
        TrainingError: for folds that the compiled step cannot have, and another front end than the usual one.
    """
    if config.frontend != FRONTEND:
        raise TrainingError("recordings are read by the usual front end only: leave model.frontend out of --config")
    labels = (SILENCE, UNKNOWN, *words) if words else config.labels
    config = replace(config, folds=folds or config.folds, labels=labels)
    if len(set(config.factors) - {1}) > 1:
        raise TrainingError("--fold takes one factor beside 1, such as 1,1,2,2: the compiled step folds in one way")
    layout(config)  # refuses now what else the first report would, when there are steps to lose
    return config


def what_next(state: State, data: Path, out: Path) -> str:
    """What a run that has ended leaves, and what to do with it."""
    if state.objective.stage == Stage.CLIP:
        return f"wrote {out / TUTOR}; --tutor has it teach"
    judge = shlex.join(["deltaspot", "evaluate", "clips", "--data", str(data), "--model", str(out / MODEL)])
    return f"wrote {out / MODEL}; this judges it:\n{judge}"


def described(figures: dict[str, float]) -> str:
    """Smoothed figures, for the bar."""
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def judged(report: Report) -> str:
    """One line for each operating point validated."""
    lines = []
    for point, figures in (report.validation or {}).items():
        told = {"causal work done" if name == "done" else name: share for name, share in figures.items()}
        shares = [f"{name} {'-' if share is None else f'{share:.2%}'}" for name, share in told.items()]
        lines.append(f"step {report.step}, {point}: " + ", ".join(shares))
    return "\n".join(lines)
