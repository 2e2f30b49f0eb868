"""The model card: what a checkpoint is, what it was judged on, what it can and cannot do, as Markdown.

Every figure comes from the checkpoint or from an evaluation of these very weights. The words about data and limits are
the same in every card, and so must be true of every run of `make weights`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.checkpoint import SHIPPED
from models.evaluate_sets import DIRECT_DB
from models.operating import usual_point
from models.spans import USUAL_MS

Facts = Mapping[str, Any]

SETS = {
    "target": "keywords in noise, and all running speech",
    "keywords": "keywords in noise, 0-20 dB",
    "mixed": "as many other words between them",
    "speech": "running speech, no keyword in it",
    "noise": "backgrounds alone",
    "silence": "digital silence and hiss",
}

ABOUT = """\
A causal Keyword Transformer for endless audio. It reads 16 kHz sound token by token ({token_ms:g} ms), remembers
{receptive_s:.1f} s, and says at every token which of {labels} labels it hears: {keywords}; silence; or another word.
{parameters:,} parameters, {bytes:,} bytes, fingerprint `{fingerprint}`.
"""

DATA = """\
Trained on Google Speech Commands (Warden 2018, CC BY 4.0), official training speakers, as audio and, where the data had
them, as log-mel pictures; mixed with the data set's own backgrounds and, where the data had them, with ESC-10 (CC BY)
and sentences by synthetic voices (`models.make_speech`) as words that are no keyword. Soft targets of a stock KWT-1 and
of earlier checkpoints were part of the recipe of the shipped weights. Judged here on official validation speakers, on
the last fifth of each background, and on running speech where the data had it: for the shipped weights, spoken orders
(Apache-2.0) that no part of their training has seen. The operating points were chosen on these very clips; thresholds
on streams of the same validation speakers, laid out anew, and on these very backgrounds and this very running speech,
too: the rate of false alarms on other people's speech will be higher. The official test set was not used.
"""

LIMITS = """\
- Keywords are single English words, said by volunteers into their own microphones; most accents are North American or
  European English. Children, strong accents and impaired speech are rare in the data, and nothing here says how well
  they are understood: calibrate and judge on recordings of your own users before you rely on it.
- Words that sound alike are confused: see the matrix. A word inside running speech is heard worse than one on its own.
- Below 0 dB of signal-to-noise ratio, and for music or several people at once, expect misses.
- It is no safety device: a missed "stop" is a matter of chance.
- Sound is judged and forgotten; the model does not tell who speaks.
"""


KEYWORD_COLUMNS = ("keyword", "threshold", "patience, tokens", "word, ms from where its posterior rises")


class CardError(ValueError):
    """An evaluation that does not belong to the checkpoint, or to its thresholds."""


def write_card(model: Facts, evaluation: Facts, log: Path | None = None) -> str:
    """Facts of a checkpoint (`deltaspot model info`) and its evaluation -> Markdown.

    Raises:
        CardError: if the evaluation is of other weights, or of other thresholds.
    """
    judged = evaluation["model"]["fingerprint"]
    if judged != model["fingerprint"]:
        raise CardError(f"the evaluation is of {judged}, the checkpoint is {model['fingerprint']}: evaluate it anew")
    if evaluation["calibration"] != model["calibration"]:
        raise CardError("the evaluation is of other thresholds than the checkpoint's: evaluate it anew")
    keywords = [word for word in model["labels"] if not word.startswith("_")]
    about = ABOUT.format(**{**model, "labels": len(model["labels"]), "keywords": ", ".join(keywords)})
    sections = [
        ("# Model card: streaming Keyword Transformer", about),
        ("## Clips", clips(evaluation["clips"])),
        ("## Streams", streams(evaluation)),
        ("## Harder conditions", conditions(evaluation["sweeps"])),
        ("## Operating points and thresholds", thresholds(model)),
        ("## Data and licence", DATA + "Weights: Apache-2.0."),
        ("## Training", training(model["metadata"], log)),
        ("## Limits", LIMITS),
    ]
    return "\n\n".join(f"{heading}\n\n{body.strip()}" for heading, body in sections) + "\n"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None) -> str:
    """A share as text."""
    return "-" if share is None else f"{100 * share:.2f} %"


def _within(bounds: Sequence[float] | None) -> str:
    """Bounds of a share as text."""
    return "-" if bounds is None else "{:.1f} - {:.1f} %".format(*(100 * bound for bound in bounds))


def clips(reports: Sequence[Facts]) -> str:
    """Accuracy and work at each operating point."""
    shares = ("accuracy", "keywords", "unknown", "silence")
    work = ("MACs skipped: of window", "of causal")
    heading = ("point", *(cell for name in shares for cell in (name, "95 %")), "balanced", *work)
    rows = [
        (
            report["name"],
            *(cell for name in shares for cell in (percent(report[name]), _within(report["bounds"][name]))),
            percent(report["balanced"]),
            percent(report["macs_skipped_vs_window"]),
            percent(report["macs_skipped_vs_causal"]),
        )
        for report in reports
    ]
    return (
        f"{reports[0]['clips']} clips of one second: validation speakers, and seconds of validation noise as silence. "
        "`window` recomputes the whole second at every token, `causal` computes new tokens only, without gates. "
        "Units that stay zero behind a ReLU are skipped at every point, `dense` included. `balanced` is the mean of "
        "all labels' shares, as if there were as many clips of each. Bounds: Clopper-Pearson.\n\n"
        f"{table(heading, rows)}\n\n{_speakers(reports)}![Confusion matrix](confusion.png)"
    )


def _speakers(reports: Sequence[Facts]) -> str:
    """How errors lie on speakers at the usual point, where the clips say whose they are."""
    usual = usual_point([report["name"] for report in reports])
    found = next(report["speakers"] for report in reports if report["name"] == usual)
    if found is None:
        return ""
    return (
        f"Of {found['count']} speakers {found['faultless']} are always understood at `{usual}`; half of all errors are "
        f"made with {found['half']} of them. With speakers drawn anew (bootstrap), the accuracy of what they say "
        f"is within {_within(found['bounds'])}: who speaks decides more than the number of clips tells.\n\n"
    )


def streams(evaluation: Facts) -> str:
    """Misses, false alarms and latency of every set."""
    reports = evaluation["streams"]
    chosen_at = evaluation["calibration"].get("made_for", {"point": SHIPPED})["point"]
    alarms = ("false alarms per hour", "of them unprovoked", "95 %")
    heading = ("set", "hours", "exposed", "keywords", "missed", "95 %", *alarms, "latency p50 / p90, ms")
    rows = [(text, *_stream(reports[name])) for name, text in SETS.items() if name in reports]
    protocol = evaluation["protocol"]
    return (
        f"Streams of {protocol['minutes']:g} minutes, {protocol['streams']} in each set with words: "
        f"{protocol['recordings']} recordings of {reports['keywords']['speakers']} speakers say keywords, over "
        f"{protocol['noise_minutes']:.1f} minutes of noise, whose every second comes as often. A detection counts "
        "from a word's start until 0.75 s after its end; everything else is a false alarm, unprovoked if no keyword "
        "was being said. Unprovoked ones are counted per exposed hour, since there can be none until 0.75 s after a "
        "keyword: that rate is what the thresholds were chosen for. All false alarms are counted per hour of audio. "
        "Latency runs from the word's end to the sample that decided. Bounds: of misses with speakers drawn anew "
        "(bootstrap), since recordings come again and those of one speaker are alike; of rates, Garwood.\n\n"
        f"{table(heading, rows)}\n\n{_places(reports['keywords'])}![Detection error trade-off](trade_off.png)\n\n"
        f"The first of these sets at every operating point; thresholds are those that were chosen at `{chosen_at}`:\n\n"
        f"{table(('point', *heading[1:]), [(name, *_stream(report)) for name, report in evaluation['points'].items()])}"
    )


def _places(report: Facts) -> str:
    """How well detections tell where a word lies."""
    if report["start_off_ms_p50"] is None:
        return ""
    near, far = (f"{report[f'start_off_ms_{p}']:.0f} and {report[f'end_off_ms_{p}']:.0f} ms" for p in ("p50", "p90"))
    return f"`start_s` and `end_s` are within {near} of the word's own for half of them, within {far} for 90 %.\n\n"


def _stream(report: Facts) -> tuple[str, ...]:
    alarms, unprovoked = report["false_alarms_per_hour"], report["unprovoked_per_hour"]
    bounds = report["unprovoked_per_hour_bounds"]
    rate = (
        f"{alarms:.2f}",
        "-" if unprovoked is None else f"{unprovoked:.2f}",
        "-" if bounds is None else "{:.2f} - {:.2f}".format(*bounds),
    )
    hours = f"{report['hours']:.2f}", f"{report['exposed_hours']:.2f}"
    if not report["keywords"]:
        return *hours, "0", "-", "-", *rate, "-"
    misses = _within(report["miss_rate_bounds"])
    latency = (
        "-" if report["latency_ms_p50"] is None else f"{report['latency_ms_p50']:.0f} / {report['latency_ms_p90']:.0f}"
    )
    return *hours, str(report["keywords"]), percent(report["miss_rate"]), misses, *rate, latency


def conditions(sweeps: Facts) -> str:
    """Misses and false alarms under each condition of each sweep."""
    names = {
        "snr_db": "signal-to-noise ratio, dB",
        "gain_db": "gain, dB (at 20 dB SNR)",
        "line": "line (at 20 dB SNR)",
        "room": f"room, decay in s (echoes at -{DIRECT_DB:g} dB, 20 dB SNR)",
    }
    rows = [
        (names[sweep], condition, percent(report["miss_rate"]), f"{report['false_alarms_per_hour']:.1f}")
        for sweep, reports in sweeps.items()
        for condition, report in reports.items()
    ]
    return "The same ten minutes of keywords each time.\n\n" + table(
        ("what", "", "missed", "false alarms per hour"), rows
    )


def thresholds(model: Facts) -> str:
    """The calibration, and the names of the operating points."""
    calibration = model["calibration"]
    points = ", ".join(f"`{name}`" for name in ("dense", *(p for p in model["points"] if p != "dense")))
    return (
        f"Operating points: {points}. Silence gains {calibration.get('silence', 0.0):g} "
        f"in log-odds on streams; posteriors are averaged over {calibration['window_tokens']} tokens; a keyword is "
        f"armed again {calibration['margin']:g} below its threshold (at half of it where that is higher), "
        f"{calibration['refractory_ms']} ms after it fired.{made_for(calibration)}"
        f"\n\n{table(KEYWORD_COLUMNS, keyword_rows(calibration['keywords']))}"
    )


def made_for(calibration: Facts) -> str:
    """A sentence, after a space, on what thresholds were chosen for; nothing where nobody noted it."""
    if not (made := calibration.get("made_for")):
        return ""
    return (
        " Thresholds were chosen at `{point}` for {false_alarms_per_hour:g} unprovoked false alarms an exposed hour, "
        "on streams of {exposed_hours:.2f} such hours."
    ).format(**made)


def keyword_rows(words: Facts) -> list[tuple[str, ...]]:
    """A calibration's keywords, in `KEYWORD_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for word, rule in words.items():
        start_ms, end_ms = rule.get("span_ms", USUAL_MS)
        rows.append((word, f"{rule['threshold']:.3f}", str(rule["patience"]), f"{start_ms:.0f} to {end_ms:.0f}"))
    return rows


def training(metadata: Mapping[str, str], log: Path | None) -> str:
    """What the checkpoint says of its own training, and its log in a few rows."""
    told = "\n".join(f"- {name}: {text}" for name, text in metadata.items()) or "Nothing is recorded."
    if log is None:
        return told
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    kept = [*lines[: -1 : max(1, len(lines) // 12)], lines[-1]]
    columns = [name for name in kept[-1] if isinstance(kept[-1][name], int | float)]
    rows = [[_number(line[name]) if name in line else "-" for name in columns] for line in kept]
    return f"{told}\n\n{table(columns, rows)}\n\n![Learning curves](training.png)"


def _number(value: float) -> str:
    """Whole numbers as they are, others to four digits."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
