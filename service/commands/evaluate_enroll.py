"""`deltaspot evaluate enroll`: keywords from a few recordings, on endless audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from models.background import embed_all_words, embed_speech, fit
from models.checkpoint import load_checkpoint
from models.config import UNKNOWN
from models.data import SPEECH_FOLDER, load_corpus, walk
from models.evaluate_enroll import (
    COUNTS,
    WORDS,
    Enrolment,
    check_recordings,
    follow,
    forgetful,
    halves,
    judge_word,
    streams_of,
)
from models.evaluate_sets import gather_material
from models.network import Network
from models.operating import usual_point
from service.commands.material import pixels_in, tell_of
from service.commands.options import AsJson, Cache, Model, Seed, Snr, data_option
from service.commands.replay import check_calibrated, detector
from service.commands.tables import console, show


def enroll(
    data: Annotated[Path, data_option("Folder of recordings, running_speech/ among them.")],
    cache: Cache = None,
    minutes: Annotated[float, typer.Option(min=1, help="Length of the stream in which one word is said.")] = 20.0,
    snr: Snr = (0.0, 20.0),
    trials: Annotated[int, typer.Option(min=1, help="Choices of recordings for each word and number.")] = 3,
    seed: Seed = 0,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Judge keywords from 3, 5 and 10 recordings, of words that the network knows as unknown only; some minutes."""
    network = Network(load_checkpoint(model))
    check_calibrated(network.checkpoint.calibration)
    point = usual_point(network.points)
    with console.status("reading recordings of validation speakers"):
        recorded, said = map(gather_material, halves(item for item in walk(data) if item.word != SPEECH_FOLDER))
    check_recordings(recorded, said)
    tell_of(said)
    with console.status("fitting a background without the words"), pixels_in(cache) as folder:
        corpus = load_corpus(data, "training", folder)
        speech = embed_speech(network, corpus, point)  # first, since there may be none
        background = fit(embed_all_words(network, forgetful(corpus), point), speech, network.config)
    with console.status("embedding recordings of validation speakers"):
        enrolment = Enrolment(network, background, recorded.clips, point)
        streams = streams_of(said, minutes, snr, seed)
    followed = {name: follow(network, streams[name], point) for name in track(streams, "streams", console=console)}
    results = {
        count: {
            word: judge_word(enrolment, word, count, followed, detector, trials)
            for word in track(WORDS, f"{count} recordings", console=console)
        }
        for count in COUNTS
    }
    described = {"model": network.checkpoint.fingerprint, "label_in_training": UNKNOWN, "snr_db": snr, "trials": trials}
    if as_json:
        print(json.dumps({**described, "recordings": results}))
    else:
        show(table(results))


def table(results: dict[int, dict[str, dict[str, Any]]]) -> Table:
    """One row for each number of recordings and word."""
    shown = Table(
        caption="usual: threshold as enrolled; best: chosen on these streams, at most 1 false alarm per hour, if any "
        "keeps to it; means over the choices of recordings, bounds of one pass over the streams"
    )
    for name in (
        "recordings",
        "word",
        "said",
        "missed, usual",
        "95 %",
        "/ h",
        "missed, best",
        "95 %",
        "/ h",
        "mixed / h",
    ):
        shown.add_column(name, justify="left" if name == "word" else "right")
    for count, words in results.items():
        for word, at in words.items():
            cells = [str(count), word, str(at["usual"]["keywords"])]
            for point in (at["usual"], at["best"]):
                if point is None:
                    cells += ["-"] * 3
                    continue
                low, high = point["miss_rate_bounds"]
                cells += [
                    f"{point['miss_rate']:.1%}",
                    f"{low:.1%}..{high:.1%}",
                    f"{point['false_alarms_per_hour']:.2f}",
                ]
            shown.add_row(*cells, f"{at['mixed']['false_alarms_per_hour']:.2f}")
    return shown
