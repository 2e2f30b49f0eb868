"""`deltaspot model import`: the published Keyword Transformer, from tflite into our checkpoint format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import AsJson


def import_stock(
    source: Annotated[Path, typer.Argument(help="The published file, such as kwt1_v2_12.tflite.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (safetensors).")],
    check: Annotated[
        Path | None, typer.Option(help="Directory of recordings: compare with LiteRT on its validation clips.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a stock Keyword Transformer; needs the `litert` extra, and what it writes does not."""
    from models.config import ModelConfig
    from models.data import walk
    from models.evaluate import read_clips
    from models.kwt_import import compare, import_tflite
    from models.kwt_weights import parameters, save

    config, weights = import_tflite(source)
    save(out, config, weights)
    result: dict[str, str | float] = {
        "path": str(out),
        "parameters": parameters(weights),
        "macs": sum(config.macs().values()),
    }
    if check is not None:
        result |= compare(source, config, weights, read_clips(walk(check), ModelConfig(), "validation"))
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))
