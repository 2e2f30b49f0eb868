"""`deltaspot train`: recordings in, a checkpoint out."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.checkpoint import load_checkpoint, shipped_path
from models.config import ModelConfig
from models.gated import Gated
from models.recipe import Recipe
from models.teachers import load_teacher
from models.train import MODEL, Dense, Report, share_cores, train
from models.train_state import (
    STATE,
    Objective,
    Schedule,
    State,
    TrainingError,
    load_state,
    new_state,
    read_settings,
)
from models.tutor import Tutor

app = typer.Typer(add_completion=False)


class Stage(StrEnum):
    """What a run minimises."""

    DENSE = "dense"
    GATED = "gated"


@app.command("train")
def train_command(
    data: Annotated[Path, typer.Option(envvar="DELTASPOT_DATA", help="Folder with clips and noise, or their tars.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, state, log and curves.")],
    stage: Annotated[Stage, typer.Option(help="Dense: from nothing. Gated: on from a checkpoint, gates learned.")] = (
        Stage.DENSE
    ),
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from; the gated stage needs one.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint, ours or stock, that has a say in the targets; may be repeated."),
    ] = None,
    tutor: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of ours that hears what the student hears, and has a say at every token."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, as it was set up.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")] = None,
    fold: Annotated[
        str,
        typer.Option(help="Sub-tokens of each layer, such as 1,1,2,2,1,1; dense stage only. What folds begins anew."),
    ] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data; runs repeat to the bit.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for the data as pixels; OUT/cache if left out.")] = None,
) -> None:
    """Train a checkpoint from recordings, resumable; the same command works on the full public Speech Commands.

    DATA holds <word>/<speaker>_nohash_<take>.wav (or flac, ogg, opus, jpg) at any depth or in tar archives, and noise
    in _background_noise_. Words that are no keyword are unknown words; speakers are split by the published rule.
    """
    if resume:
        if fold or any(asked is not None for asked in (steps, seed, init, rate)):
            raise TrainingError(
                "--resume goes on as the run was set up; leave out --steps, --seed, --init, --rate, --fold"
            )
        state = load_state(out / STATE, objective_of(out))
    else:
        if (out / STATE).exists():
            raise TrainingError(f"{out} holds a run already; --resume goes on with it, another --out starts anew")
        state = begin(stage, init, steps, seed, rate, read_folds(fold))
    teachers = [load_teacher(path) for path in teacher or ()]
    heard = Tutor(load_checkpoint(tutor)) if tutor else None
    share_cores(state.schedule)
    console = Console()
    console.print(f"{state.objective.stage} stage, steps {state.step} to {state.schedule.steps}; reading {data}")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=state.schedule.steps, completed=state.step)
        for report in train(state, data, out, cache or out / "cache", teachers, heard):
            progress.update(bar, completed=report.step, description=described(report.figures))
            if report.validation:
                console.print(judged(report), soft_wrap=True)
    console.print(f"wrote {out / MODEL}; `deltaspot evaluate clips` judges it")


def read_folds(text: str) -> tuple[int, ...]:
    """Sub-tokens of each layer, from 1,1,2.

    Raises:
        TrainingError: for anything else.
    """
    try:
        return tuple(int(factor) for factor in text.split(",") if factor)
    except ValueError as error:
        raise TrainingError(f"--fold takes whole numbers between commas, such as 1,1,2,2; not {text!r}") from error


def objective_of(out: Path) -> Objective:
    """The objective of the run in a folder, for `load_state` to fill."""
    settings = read_settings(out / STATE)
    kind = Dense if settings["stage"] == Stage.DENSE else Gated
    return kind(settings["config"], settings["recipe"])


def begin(
    stage: Stage,
    init: Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    rate: float | None = None,
    folds: tuple[int, ...] = (),
) -> State:
    """A new run of a stage."""
    schedule = Schedule() if stage is Stage.DENSE else Gated.SCHEDULE
    asked: dict[str, Any] = {"steps": steps, "seed": seed, "learning_rate": rate}
    schedule = replace(schedule, **{name: value for name, value in asked.items() if value is not None})
    schedule = replace(schedule, warmup=min(schedule.warmup, schedule.steps // 10))
    if folds and stage is Stage.GATED:
        raise TrainingError("--fold is for the dense stage; the gated one keeps the folds of its checkpoint")
    if len(set(folds) - {1}) > 1:
        raise TrainingError("--fold takes one factor beside 1, such as 1,1,2,2: the compiled step folds in one way")
    start = load_checkpoint(init) if init else None
    if stage is Stage.GATED:
        start = start or load_checkpoint(shipped_path())
        return new_state(start.config, Recipe(), schedule, Gated(start.config, Recipe(), start.points), start)
    config = start.config if start else ModelConfig()
    config = replace(config, folds=folds or config.folds)
    return new_state(config, Recipe(), schedule, Dense(config, Recipe()), start)


def described(figures: dict[str, float]) -> str:
    """Smoothed figures, for the bar."""
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def judged(report: Report) -> str:
    """One line for each operating point validated."""
    lines = []
    for point, figures in (report.validation or {}).items():
        shares = [f"{name} {'-' if share is None else f'{share:.2%}'}" for name, share in figures.items()]
        lines.append(f"step {report.step}, {point}: " + ", ".join(shares))
    return "\n".join(lines)
