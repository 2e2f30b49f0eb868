"""Files of `deltaspot enroll` -> what `configure.enrolled` says. Knows no model: the server judges whether they fit."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from client.errors import SourceError
from service.protocol import Enrolled


def read_keyword(path: Path) -> Enrolled:
    """A keyword of one's own.

    Raises:
        SourceError: for a file that is missing or is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("format")
        return Enrolled.model_validate_json(json.dumps(values))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; `deltaspot enroll` makes such files") from None
    except (ValueError, LookupError, AttributeError, TypeError, ValidationError):
        raise SourceError(f"{path} is no keyword of `deltaspot enroll`") from None
