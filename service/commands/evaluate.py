"""`deltaspot evaluate`: how good a checkpoint is, on clips, on streams, and through a real socket.

The one place where the evaluation meets the detector that the server runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import soundfile
import typer
from rich.progress import track
from rich.table import Table

from models.checkpoint import load_checkpoint
from models.config import KEYWORDS, ModelConfig
from models.data import SPLITS, DataError, walk
from models.evaluate import ClipReport, cut_silence, join, judge_clips, read_clips, validation_clips
from models.evaluate_sets import KEYWORDS_ALONE, Material, build_many, standard_sets, sweeps
from models.evaluate_streams import Calibration, Heard, hear, total, trade_off
from models.network import Network
from models.operating import usual_point
from models.streams import SAMPLE_RATE, Plan, write_labels
from service.commands.evaluate_enroll import enroll
from service.commands.evaluate_self_check import self_check
from service.commands.evaluate_socket import socket
from service.commands.material import of_speakers, read_material, read_streams
from service.commands.methods import methods
from service.commands.options import AsJson, Data, Model, Point, Seed, Snr
from service.commands.replay import check_calibrated, detector
from service.commands.tables import console, show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Judge a checkpoint on clips and on streams.")
app.command()(socket)
app.command()(enroll)
app.command()(methods)
app.command()(self_check)


@app.command()
def clips(
    data: Data,
    split: Annotated[
        str,
        typer.Option(help="training, validation or testing, by speaker; or all, for a folder that is one of these."),
    ] = "validation",
    silence: Annotated[
        Path | None, typer.Option(help="Folder that holds a folder of noise; its validation part counts as silence.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the shipped point's confusion matrix here, PNG.")
    ] = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Judge one-second clips at every operating point.

    Raises:
        DataError: where nobody of the split says anything.
    """
    _make_room(confusion)
    network = Network(load_checkpoint(model))
    try:
        heard = read_clips(walk(data), network.config, split)
    except DataError as error:
        if split not in SPLITS:
            raise
        raise DataError(f"{error}; --split all judges all speakers") from error
    if silence is not None:
        heard = join(heard, cut_silence(walk(silence), network.config))
    reports = [judge_clips(network, heard, point) for point in network.points]
    if confusion is not None:
        from models.plots import draw_confusion

        drawn = next(report for report in reports if report.name == usual_point(network.points))
        draw_confusion(drawn.confusion, network.config.labels, confusion)
    if as_json:
        print(json.dumps({"split": split, "points": [asdict(report) for report in reports]}))
    else:
        show(clips_table(reports, split))


def clips_table(reports: Sequence[ClipReport], split: str) -> Table:
    """One row for each operating point."""
    caption = "below each share of right ones: its 95 % bounds; balanced: the mean of each label's share"
    usual = usual_point([report.name for report in reports])
    if found := next(report.speakers for report in reports if report.name == usual):
        low, high = found.bounds
        caption += (
            f"\n{usual}: {found.faultless} of {found.count} speakers always right, half of all errors with {found.half}"
        )
        caption += f"; {low:.1%}..{high:.1%} with speakers drawn anew"
    table = Table(title=f"{reports[0].clips} clips, split: {split}", caption=caption)
    shares = ("accuracy", "keywords", "unknown", "silence", "balanced")
    for name in ("point", *shares, "skipped of window", "of causal", "CPU ms / clip"):
        table.add_column(name, justify="left" if name == "point" else "right")
    for r in reports:
        bounded = zip((r.accuracy, r.keywords, r.unknown, r.silence), r.bounds.values(), strict=True)
        right = ("-" if b is None else f"{share:.2%}\n{b[0]:.1%}..{b[1]:.1%}" for share, b in bounded)
        rest = (f"{share:.2%}" for share in (r.balanced, r.macs_skipped_vs_window, r.macs_skipped_vs_causal))
        table.add_row(r.name, *right, *rest, f"{r.cpu_ms_per_clip:.2f}")
    return table


@app.command()
def stream(
    audio: Annotated[Path, typer.Option(help="A recording, or a folder of them.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="TSV of start_s, end_s, word; for a folder, a folder of them. Without: nothing may fire."),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write the trade-off over thresholds here, PNG, and beside it as CSV."),
    ] = None,
    stock: Annotated[
        Path | None, typer.Option(help="Judge this stock network instead, with --fit, since it has no thresholds.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="With the thresholds that suit these very streams best, to compare by.")
    ] = False,
    point: Point = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Judge endless audio: keywords missed, false alarms per hour, latency from the end of the word.

    Raises:
        DataError: where thresholds are to be fitted or a trade-off drawn, and nothing tells what is said.
    """
    if stock is not None and (point, model) != (None, None):
        raise typer.BadParameter("--stock is another network than --model, and has no --point: leave them out")
    fit = fit or stock is not None
    if fit and labels is None:
        raise DataError("thresholds that suit these streams are chosen by what is said in them: name their labels")
    if curve is not None and labels is None:
        raise DataError("a trade-off needs recordings in which keywords are said, and their labels: name these")
    _make_room(curve)
    if stock is not None:
        from models.kwt_streams import hear_stock

        config, heard = hear_stock(stock, read_streams(audio, labels, KEYWORDS))
    else:
        network = Network(load_checkpoint(model))
        config, calibration = network.config, network.checkpoint.calibration
        if not fit:
            check_calibrated(calibration)
        heard = hear(network, read_streams(audio, labels, config.keywords), usual_point(network.points, point))
    detect = detector(config)
    if fit:
        calibration = _fitted(heard, config)
    whole, each = total(heard, calibration, detect, config)
    report = whole.report()
    if curve is not None:
        _draw_curves({audio.name: trade_off(heard, calibration, detect, config)}, report, curve)
    if audio.is_dir():
        report["files"] = {h.stream.name: part.report() for h, part in zip(heard, each, strict=True)}
    if as_json:
        print(json.dumps(report))
    else:
        show(streams_table({audio.name: report}))


def _make_room(picture: Path | None) -> None:
    """Make the folder of what will be drawn, before there is anything to lose."""
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)


def _fitted(heard: Sequence[Heard], config: ModelConfig) -> Calibration:
    """The thresholds for half a false alarm an hour on these streams.

    Raises:
        DataError: where no keyword is said, so that there is nothing to choose by.
    """
    from models.calibrate import Goal, calibrate

    return calibrate(heard, detector(config), config, Goal(lent=0.0))[0]


def _draw_curves(curves: dict[str, list[dict[str, Any]]], marked: dict[str, Any], path: Path) -> None:
    """The curves as a picture; the first one as numbers, too.

    Raises:
        DataError: where no keyword is said, so that none can be missed, or nothing else, so that none can be invented.
    """
    from models.plots import draw_trade_off, write_trade_off

    if not marked["keywords"] or not marked["exposed_hours"]:
        raise DataError("a trade-off needs recordings in which keywords are said, and not only they, and their labels")
    write_trade_off(next(iter(curves.values())), path.with_suffix(".csv"))
    draw_trade_off(curves, marked, path)


def streams_table(reports: dict[str, dict[str, Any]]) -> Table:
    """One row for each set of streams."""
    table = Table(caption="exposed: hours while no keyword is said, by which unprovoked false alarms are divided")
    names = (
        "set",
        "hours",
        "exposed",
        "keywords",
        "missed",
        "95 %",
        "false alarms / h",
        "unprovoked",
        "95 %",
        "latency p50 / p90",
    )
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    for name, r in reports.items():
        share, shares = r["miss_rate"], r["miss_rate_bounds"]
        rate, rates = r["unprovoked_per_hour"], r["unprovoked_per_hour_bounds"]
        table.add_row(
            name,
            f"{r['hours']:.2f}",
            f"{r['exposed_hours']:.2f}",
            str(r["keywords"]),
            "-" if share is None else f"{share:.1%}",
            "-" if share is None else "{:.1%}..{:.1%}".format(*shares),
            f"{r['false_alarms_per_hour']:.2f}",
            "-" if rate is None else f"{rate:.2f}",
            "-" if rates is None else "{:.2f}..{:.2f}".format(*rates),
            "-" if r["latency_ms_p50"] is None else f"{r['latency_ms_p50']:.0f} / {r['latency_ms_p90']:.0f} ms",
        )
    return table


@app.command("make-stream")
def make_stream(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for the recordings (wav) and their labels (tsv).")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of each.")] = 10.0,
    snr: Snr = (0.0, 20.0),
    unknown_share: Annotated[float, typer.Option(min=0, max=1, help="Share of words that are no keyword.")] = 0.5,
    split: Annotated[
        str, typer.Option(callback=of_speakers, help="Whose clips, in whose noise: training, validation or testing.")
    ] = "validation",
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Lay clips at random times over noise: a model's keywords, and other words between them."""
    keywords = load_checkpoint(model).config.keywords
    plan = Plan(minutes=minutes, snr_db=snr, unknown_share=unknown_share)
    output.mkdir(parents=True, exist_ok=True)
    for made in build_many(read_material(data, split), plan, count, seed, keywords):
        soundfile.write(output / f"{made.name}.wav", made.samples.astype("int16"), SAMPLE_RATE)
        write_labels(made.utterances, output / f"{made.name}.tsv")
        console.print(f"{output / made.name}.wav: {len(made.utterances)} words in {plan.minutes:g} min")


@app.command()
def report(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json, the curves (csv) and pictures (png).")],
    streams: Annotated[int, typer.Option(min=1, help="Streams of ten minutes in each set with words.")] = 9,
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Everything that the model card tells: clips, streams, trade-off, sweeps. Takes some minutes."""
    network = Network(load_checkpoint(model))
    check_calibrated(network.checkpoint.calibration)
    output.mkdir(parents=True, exist_ok=True)
    material = read_material(data)
    result = {
        "model": {"fingerprint": network.checkpoint.fingerprint, "parameters": network.checkpoint.parameters},
        "protocol": {
            "streams": streams,
            "minutes": KEYWORDS_ALONE.minutes,
            "seed": seed,
            "recordings": sum(clip.word in network.config.keywords for clip in material.clips),
            "noise_minutes": sum(map(len, material.noise)) / SAMPLE_RATE / 60,
        },
        "calibration": network.checkpoint.calibration,
        "clips": _all_clips(network, data, output),
        **_all_streams(network, material, streams, seed, output),
    }
    (output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(streams_table(result["streams"]))


def _all_clips(network: Network, data: Path, output: Path) -> list[dict[str, Any]]:
    from models.plots import draw_confusion

    clips = validation_clips(data, network.config)
    reports = [judge_clips(network, clips, point) for point in track(network.points, "clips", console=console)]
    usual = usual_point(network.points)
    drawn = next(report for report in reports if report.name == usual)
    draw_confusion(drawn.confusion, network.config.labels, output / "confusion.png")
    return [asdict(report) for report in reports]


def _all_streams(network: Network, material: Material, streams: int, seed: int, output: Path) -> dict[str, Any]:
    config, calibration = network.config, network.checkpoint.calibration
    point, detect = usual_point(network.points), detector(network.config)
    sets = standard_sets(material, streams, seed, config.keywords)
    heard = {name: hear(network, sets[name], point) for name in track(sets, "streams", console=console)}
    heard["target"] = heard.get("keywords", []) + heard.get("speech", [])
    reports = {name: total(h, calibration, detect, config)[0].report() for name, h in heard.items()}
    curves = {
        name: trade_off(heard[name], calibration, detect, config) for name in ("target", "mixed") if heard.get(name)
    }
    _draw_curves(curves, reports["target"], output / "trade_off.png")
    swept = {
        sweep: {
            condition: total(hear(network, [one], point), calibration, detect, config)[0].report()
            for condition, one in track(conditions, sweep, console=console)
        }
        for sweep, conditions in sweeps(material, seed, config.keywords).items()
    }
    target = [one.stream for one in heard["target"]]
    points = {}
    for other in track(network.points, "points", console=console):
        judged = heard["target"] if other == point else hear(network, target, other)
        points[other] = total(judged, calibration, detect, config)[0].report()
    return {"streams": reports, "points": points, "trade_off": curves["target"], "sweeps": swept}
