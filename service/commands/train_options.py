"""What some options of `deltaspot train` mean: keywords, folds, and a file of settings. Knows no run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.config import ModelConfig
from models.recipe import Recipe
from models.train_state import Schedule, TrainingError


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of; the sections of a file of settings."""

    model: ModelConfig
    recipe: Recipe
    schedule: Schedule


def changed(plan: Plan, path: Path) -> Plan:
    """A plan with what a file of settings, JSON or TOML, has otherwise.

    Raises:
        TrainingError: naming the file, and the setting in it that is none or has a value it cannot have.
    """
    read = {".json": json.loads, ".toml": tomllib.loads}.get(path.suffix)
    if read is None:
        raise TrainingError(f"--config takes a file *.json or *.toml, not {path}")
    try:
        settings = _merged(asdict(plan), read(path.read_text(encoding="utf-8")), "")
        return TypeAdapter(Plan).validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error


def _merged(known: dict[str, Any], changes: object, place: str) -> dict[str, Any]:
    """Settings with changes, section by section.

    Raises:
        ValueError: naming what there is, for a name that is none.
    """
    what = place or "a file of settings"
    if not isinstance(changes, dict):
        raise ValueError(f"{what} holds names and values, not {changes!r}")  # noqa: TRY004 (as of its other mistakes)
    if strange := set(changes) - set(known):
        raise ValueError(f"{what} has no {min(strange)!r}, but {', '.join(known)}")
    below = {
        name: _merged(known[name], value, f"{place}.{name}".lstrip("."))
        for name, value in changes.items()
        if isinstance(known[name], dict)
    }
    return known | changes | below


def read_words(text: str) -> tuple[str, ...]:
    """Keywords, from marvin,sheila.

    Raises:
        TrainingError: where a word is missing.
    """
    words = tuple(word.strip() for word in text.split(","))
    if not all(words) or any(" " in word for word in words):
        raise TrainingError(f"--keywords takes words between commas, such as marvin,sheila; not {text!r}")
    return words


def read_folds(text: str) -> tuple[int, ...]:
    """Sub-tokens of each layer, from 1,1,2.

    Raises:
        TrainingError: for anything else.
    """
    try:
        return tuple(int(factor) for factor in text.split(",") if factor)
    except ValueError as error:
        raise TrainingError(f"--fold takes whole numbers between commas, such as 1,1,2,2; not {text!r}") from error
