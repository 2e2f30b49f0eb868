"""How a stream shall be, as Python may say it -> what the wire allows. Asks no server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from client.errors import SettingError
from client.keywords import read_keyword
from service.protocol import Configure, Enrolled, KeywordSettings


def wished(
    keywords: Iterable[str] | Mapping[str, KeywordSettings] | None,
    enrolled: Iterable[Path | str | Enrolled],
    settings: Mapping[str, Any],
) -> Configure:
    """What `client.connection.connect` takes -> the stream's first message; files of keywords are read.

    Raises:
        SettingError: for an argument that the protocol does not know; the message names it.
        SourceError: for a file that is no keyword.
    """
    for name, words in (("keywords", keywords), ("enrolled", enrolled)):
        if isinstance(words, str) or not isinstance(words, Iterable | None):
            raise SettingError(f"{name}: {words!r} is no list; {name}=[{words!r}] is one")
    own = tuple(word if isinstance(word, Enrolled) else read_keyword(Path(word)) for word in enrolled)
    wishes = {"enrolled": own, **settings}
    if isinstance(keywords, Mapping):
        wishes["keywords"] = dict(keywords)
    elif keywords is not None:
        wishes["keywords"] = {word: KeywordSettings() for word in keywords}
    return configured(wishes)


def configured(settings: Mapping[str, Any]) -> Configure:
    """Fields of `Configure` as Python may have them, lists and plain strings among them -> what the wire allows.

    Raises:
        SettingError: for one that it does not allow; the message names it.
    """
    try:
        return Configure.model_validate_json(json.dumps(settings, default=_plain))
    except TypeError as error:  # names that are no text
        raise SettingError(f"names must be text: {error}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SettingError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _plain(value: object) -> object:
    """What JSON does not know: messages, numpy's numbers, and anything else as text."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return value.item() if hasattr(value, "item") else str(value)
