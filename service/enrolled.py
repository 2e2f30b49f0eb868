"""Keywords that a client brings with it, or names: from `configure` to what judges them. Knows no socket."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from models.background import Background, NoBackground
from models.enroll import NAME, EnrolError, EnrolledKeyword, Spotting, check_name
from service.errors import BadMessage
from service.protocol import KeywordFile

if TYPE_CHECKING:
    from pathlib import Path

    from models.engines import AnyNetwork
    from service.protocol import Configure, Enrolled
    from service.spec import Spec

FILE_BYTES: Final = 1 << 16
"""Longest file of a keyword; its name and two rows of 1,024 numbers need less."""

log = logging.getLogger(__name__)


def stored(folder: Path | None, name: str) -> EnrolledKeyword:
    """A keyword that the server keeps: a file of `deltaspot enroll` in `folder`. Its name is letters, so it is no path.

    Raises:
        BadMessage: there is none of this name, or its file is none.
    """
    path = folder / f"{name}.json" if folder is not None and NAME.fullmatch(name) else None
    if path is None or not path.is_file() or path.stat().st_size > FILE_BYTES:
        raise BadMessage(f"this server keeps no keyword {name!r}", "stored")
    try:
        return _keyword(KeywordFile.model_validate_json(path.read_bytes()).keyword)
    except (OSError, ValueError):
        log.exception("a keyword cannot be read", extra={"path": str(path)})
        said = f"this server cannot read its keyword {name!r}: whoever runs it has to enrol it again"
        raise BadMessage(said, "stored") from None


def kept(folder: Path | None, spec: Spec) -> tuple[str, ...]:
    """Names of the keywords in `folder` that are no labels of the model's; `stored` says whether they fit."""
    names = [] if folder is None else [path.stem for path in sorted(folder.glob("*.json"))]
    return tuple(name for name in names if NAME.fullmatch(name) and name not in spec.config.labels)


def spotting(network: AnyNetwork, configure: Configure, folder: Path | None = None) -> Spotting | None:
    """What judges the client's own keywords, and those that it names of the server's; None if there are none.

    Raises:
        BadMessage: for a name that is taken or unknown, or a keyword made with another model.
    """
    if not configure.enrolled and not configure.stored:
        return None
    keywords = [_keyword(word) for word in configure.enrolled]
    keywords += [stored(folder, name) for name in configure.stored]
    if len({word.name for word in keywords}) < len(keywords):
        raise BadMessage("two keywords have the same name", "enrolled")
    try:
        for word in keywords:
            check_name(word.name, network.config)
            word.check_network(network)
        return Spotting(Background.of(network.checkpoint), keywords)
    except (EnrolError, NoBackground) as error:
        raise BadMessage(str(error), "enrolled") from None


def _keyword(word: Enrolled) -> EnrolledKeyword:
    return EnrolledKeyword(**word.model_dump())


def extended(spec: Spec, spotting: Spotting | None) -> Spec:
    """A model with the client's keywords beside its own."""
    if spotting is None:
        return spec
    return replace(spec, enrolled={word.name: word.rule for word in spotting.keywords})
