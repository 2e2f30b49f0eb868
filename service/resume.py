"""Where a stream stands, in a form that a client carries to another server.

Opaque to clients and not secret: whoever makes one up only confuses a stream of their own. Knows no session.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError

from service.errors import BadMessage

Whole = Annotated[int, Field(ge=0, lt=2**40)]
Word = tuple[Whole | None, Annotated[float, Field(ge=0, le=1)], Whole, Annotated[int, Field(ge=0, le=1)], Whole | None]
Fields = tuple[
    Annotated[str, Field(pattern=r"^[0-9a-z]{1,32}$")],
    Annotated[int, Field(gt=-(2**40), lt=2**40)],
    Whole,
    Annotated[dict[str, Word], Field(max_length=64)],
]

_fields: TypeAdapter[Fields] = TypeAdapter(Fields, config={"allow_inf_nan": False})


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream.

    Attributes:
        session: the stream's name.
        sample: 16 kHz samples since the stream began; everything before has been judged and told.
        next_id: what the next detection is called.
        state: of the detector, see `service.detector.Detector.state`.
    """

    session: str
    sample: int
    next_id: int
    state: Mapping[str, Any]

    def encode(self) -> str:
        """-> text for `checkpoint.token`."""
        fields = [self.session, self.sample, self.next_id, self.state]
        plain = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)  # names of any script stay short
        return base64.urlsafe_b64encode(plain.encode()).decode()

    @classmethod
    def parse(cls, token: str) -> Self:
        """Inverse of `encode`.

        Raises:
            BadMessage: for anything that `encode` did not write.
        """
        try:
            return cls(*_fields.validate_json(base64.urlsafe_b64decode(token)))
        except (ValueError, ValidationError):
            raise BadMessage("this resume token was not made by a server of this version", "resume.token") from None
