"""`deltaspot model`: describe, import, calibrate and export checkpoints."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from models import spans
from models.background import embed_all_words, embed_speech, fit
from models.calibrate import Goal, calibrate, met, words_said
from models.checkpoint import LEARNED, load_checkpoint, save, shipped_path
from models.data import load_corpus, walk
from models.evaluate import validation_clips
from models.evaluate_sets import standard_sets
from models.evaluate_streams import Tally, hear, total
from models.network import Network
from models.operating import usual_point
from service.commands.evaluate import streams_table
from service.commands.material import pixels_in, read_material, read_streams
from service.commands.model_import import import_stock
from service.commands.model_info import describe, info
from service.commands.options import Cache, Model, Point, Seed, data_option, is_given
from service.commands.replay import detector
from service.commands.tables import console, show

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Describe, import, calibrate and export checkpoints."
)
app.command()(info)
app.command("import")(import_stock)

PARTS = {"model", "calibration", "protocol", "clips", "streams", "points", "sweeps"}
"""What an evaluation has in it."""
CALIBRATION_SEED = 50_000
"""Far from the evaluation's, so that no stream of words is used for both; running speech and noise are the same."""


@app.command("points")
def points_command(
    output: Annotated[Path, typer.Option(dir_okay=False, help="Where the checkpoint with its points goes.")],
    data: Annotated[Path, data_option("Folder of recordings; validation speakers choose.")],
    model: Annotated[Path, typer.Option(help="Checkpoint of `deltaspot train --stage gated`.")],
) -> None:
    """Choose `shipped` and `aggressive`: multiples of the learned thresholds that lose little accuracy.

    Accuracy is that of words and of seconds of noise, which are silence.

    Raises:
        DataError: where there is no noise.
        PointError: if no thresholds were learned, or every multiple loses too much.
    """
    from models.points import PointError, choose, trials

    checkpoint = load_checkpoint(model)
    if LEARNED not in checkpoint.points:
        raise PointError(f"{model} has no learned thresholds: only a checkpoint of `train --stage gated` has them")
    with console.status("reading recordings"):
        clips = validation_clips(data, checkpoint.config)
    learned, tried = checkpoint.points[LEARNED], []
    for trial in trials(checkpoint, learned, clips):
        tried.append(trial)
        report = trial.report
        console.print(f"x{trial.factor:.3f}: {report.accuracy:.4f}, {report.macs_skipped_vs_causal:.2%} skipped")
    save(choose(checkpoint, learned, tried), output)


@app.command("balance")
def balance_command(
    output: Annotated[Path, typer.Option(dir_okay=False, help="Where the checkpoint with its new bias goes.")],
    data: Annotated[Path, data_option("Folder of recordings; training speakers choose.")],
    cache: Cache = None,
    point: Point = None,
    model: Model = None,
) -> None:
    """Choose how ready a model is to say `_silence_`: as if all labels were equally frequent.

    To be run after `points` and before `calibrate`.
    """
    from models.balance import balance
    from models.validation import Validation

    network = Network(load_checkpoint(model))
    with console.status("reading recordings of training speakers"), pixels_in(cache) as folder:
        heard = Validation(load_corpus(data, "training", folder), network.config)
    with console.status("judging them"):
        balanced, moved = balance(network, usual_point(network.points, point), heard)
    save(balanced, output)
    console.print(f"silence {moved:+.2f}")


@app.command()
def prune(
    output: Annotated[Path, typer.Option(dir_okay=False, help="Where the checkpoint with its points goes.")],
    data: Annotated[Path, data_option("Folder of recordings; training speakers teach, validation speakers choose.")],
    tau: Annotated[float, typer.Option(min=0, help="Mean |score| under which a head is silent; 0: never.")] = 0.0,
    model: Model = None,
) -> None:
    """Add the points `pruned` and `shipped-pruned`: thresholds under which scores are dropped, learned on clips.

    Only where they lose little beside `dense` and `shipped`. To be run after `points` and before `calibrate`, since a
    model's fingerprint covers its points.

    Raises:
        CheckpointError: if its layers fold.
    """
    from models.methods import training_clips
    from models.methods_streaming import check_plain
    from models.pruning_points import learn

    checkpoint = load_checkpoint(model)
    check_plain(checkpoint.config)
    with console.status("reading recordings"):
        clips = training_clips(partial(walk, data), checkpoint.config.labels)
        held = validation_clips(data, checkpoint.config)
    pruned = learn(checkpoint, clips, held, tau=tau, tell=console.print)
    save(pruned, output)
    console.print(f"operating points: {', '.join(pruned.points)}")


@app.command("calibrate")
def calibrate_command(
    context: typer.Context,
    output: Annotated[Path, typer.Option(dir_okay=False, help="Where the calibrated checkpoint goes.")],
    data: Annotated[Path | None, data_option("Folder of recordings, to build streams from.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Your own recordings, in which keywords are said.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their words: TSV of start_s, end_s, word, or a folder.")] = None,
    negatives: Annotated[Path | None, typer.Option(help="Your own recordings in which nothing may fire.")] = None,
    false_alarms: Annotated[float, typer.Option(min=0, help="Aimed at, per hour while no keyword is said.")] = 0.5,
    latency_ms: Annotated[float, typer.Option(help="Latency from a word's end to aim at, median.")] = 230.0,
    streams: Annotated[int, typer.Option(min=1, help="Streams of ten minutes with keywords.")] = 9,
    seed: Seed = CALIBRATION_SEED,
    point: Point = None,
    model: Model = None,
) -> None:
    """Choose smoothing and every keyword's threshold for a rate of false alarms; weights stay as they are.

    Learns as well where a keyword begins and ends, seen from where its posterior rises. A keyword that is never said
    keeps its threshold; one that has none yet gets one at least as strict as all that are chosen. Where recordings of
    your own are named, data that only the environment names is left alone.

    Raises:
        DataError: where no keyword is said at all.
    """
    if (audio is None) != (labels is None):
        raise typer.BadParameter("name --audio and --labels together: recordings, and which words are said in them")
    checkpoint = load_checkpoint(model)
    network = Network(checkpoint)
    sets = {}
    if data is not None and (is_given(context, "data") or (audio, negatives) == (None, None)):
        # Half of all words being strangers is a test, not a rate.
        sets = standard_sets(read_material(data), streams, seed, network.config.keywords, mixed=False)
    if audio is not None:
        sets["own"] = read_streams(audio, labels, network.config.keywords)
    if negatives is not None:
        sets["own negatives"] = read_streams(negatives, None, network.config.keywords)
    if not sets:
        raise typer.BadParameter("name --data, or --audio with --labels; --negatives as well, if there are any")
    words_said((stream for one in sets.values() for stream in one), network.config)  # or all would be heard in vain
    judged = usual_point(network.points, point)
    heard = [one for name in track(sets, "streams", console=console) for one in hear(network, sets[name], judged)]
    goal = Goal(false_alarms_per_hour=false_alarms, latency_ms=latency_ms)
    with console.status("choosing thresholds"):
        detect = detector(network.config)
        calibration, _ = calibrate(heard, detect, network.config, goal, checkpoint.calibration)
        calibration = spans.learn(heard, calibration, detect, network.config, checkpoint.calibration)
        outcome, _ = total(heard, calibration, detect, network.config)
    hours = round(outcome.exposed_hours, 2)
    calibration["made_for"] = {
        "point": judged, "false_alarms_per_hour": false_alarms, "exposed_hours": hours, "seed": seed,
    }  # fmt: skip
    _warn(outcome, goal, network.config.keywords, checkpoint.calibration.get("keywords", {}))
    save(replace(checkpoint, calibration=calibration), output)
    Console().print_json(data=calibration)
    show(streams_table({"calibrated on": outcome.report()}))


def _warn(outcome: Tally, goal: Goal, keywords: Sequence[str], known: Collection[str]) -> None:
    """Say what a calibration could not do, the earlier one of which had rules for `known`."""
    unsaid = [word for word in keywords if not outcome.keywords[word]]
    if kept := [word for word in unsaid if word in known]:
        console.print(f"never said, so they keep the thresholds that they had: {', '.join(kept)}")
    if new := [word for word in unsaid if word not in known]:
        console.print(f"never said, so they get thresholds no laxer than any other: {', '.join(new)}")
    if not met(outcome, goal):
        console.print(
            f"the target is missed: {outcome.unprovoked} false alarms in {outcome.exposed_hours:.2f} hours while no "
            f"keyword was said, {goal.false_alarms_per_hour:g} an hour were wanted"
        )


@app.command()
def background(
    data: Annotated[Path, data_option("Folder of recordings, running_speech/ among them.")],
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Where the checkpoint with its background goes; over the old one if left out."
        ),
    ] = None,
    cache: Cache = None,
    model: Model = None,
) -> None:
    """Make a checkpoint able to enrol keywords: what words and speech in general look like to it; a minute."""
    path = model or shipped_path()
    network = Network(load_checkpoint(path))
    if output is None:
        console.print(f"no --output: {path} will be written over", soft_wrap=True)
    with console.status("reading recordings of training speakers"), pixels_in(cache) as folder:
        corpus = load_corpus(data, "training", folder)
    with console.status("embedding words and speech"):
        point = usual_point(network.points)
        speech = embed_speech(network, corpus, point)  # first, since there may be none
        fitted = fit(embed_all_words(network, corpus, point), speech, network.config)
    save(replace(network.checkpoint, background=fitted.arrays()), output or path)
    console.print(f"{output or path}: {len(set(corpus.words))} words, forwards and backwards")


@app.command()
def export(
    onnx: Annotated[
        Path, typer.Option(help="Where the clip graph goes; the step graph goes beside it, as *.step.onnx.")
    ],
    model: Model = None,
) -> None:
    """Write the network as ONNX: judging whole seconds, and one token with the cache as inputs and outputs.

    Both take log-mel frames, pixel / 64 - 1 as `models.features.log_mel` makes them, and no audio: whoever runs them
    needs that front end, whose numbers stand in their metadata.

    Raises:
        CheckpointError: if its layers fold.
    """
    from models.export import export_clip, export_step

    checkpoint = load_checkpoint(model)
    step = onnx.with_suffix(".step.onnx")
    export_clip(checkpoint, onnx)
    export_step(checkpoint, step)
    console.print(f"{onnx} ({onnx.stat().st_size:,} bytes) and {step} ({step.stat().st_size:,} bytes)")


@app.command()
def card(
    evaluation: Annotated[Path, typer.Argument(help="evaluation.json of `deltaspot evaluate report`.")],
    output: Annotated[Path | None, typer.Option(help="Where the card goes; standard output if left out.")] = None,
    log: Annotated[Path | None, typer.Option(help="log.jsonl of the training.")] = None,
    model: Model = None,
) -> None:
    """Write the model card, in Markdown, from an evaluation.

    Raises:
        CardError: if the evaluation is of other weights, or is none.
    """
    from models.card import write_card

    path = model or shipped_path()
    text = write_card(describe(load_checkpoint(path), path), read_evaluation(evaluation), log)
    if output is None:
        print(text, end="")
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `deltaspot evaluate report` wrote.

    Raises:
        CardError: for any other file.
    """
    from models.card import CardError

    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or PARTS - facts.keys():
        raise CardError(f"{path} is no evaluation.json of `deltaspot evaluate report`: make one with it")
    return facts
