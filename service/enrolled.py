"""Keywords that a client brings with it: from `configure.enrolled` to what judges them. Knows no socket."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.background import Background, NoBackground
from models.enroll import EnrolError, EnrolledKeyword, Spotting, check_name
from service.errors import BadMessage

if TYPE_CHECKING:
    from models.engines import AnyNetwork
    from service.protocol import Configure
    from service.spec import Spec


def spotting(network: AnyNetwork, configure: Configure) -> Spotting | None:
    """What judges the client's own keywords; None if it has none.

    Raises:
        BadMessage: for a name that is taken, or a keyword made with another model.
    """
    if not configure.enrolled:
        return None
    keywords = [EnrolledKeyword(**word.model_dump()) for word in configure.enrolled]
    if len({word.name for word in keywords}) < len(keywords):
        raise BadMessage("two keywords have the same name", "enrolled")
    try:
        for word in keywords:
            check_name(word.name, network.config)
            word.check_network(network)
        return Spotting(Background.of(network.checkpoint), keywords)
    except (EnrolError, NoBackground) as error:
        raise BadMessage(str(error), "enrolled") from None


def extended(spec: Spec, spotting: Spotting | None) -> Spec:
    """A model with the client's keywords beside its own."""
    if spotting is None:
        return spec
    return replace(spec, enrolled={word.name: word.threshold for word in spotting.keywords})
