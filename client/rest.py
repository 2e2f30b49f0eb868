"""One POST to a server's REST half, without a library for it. Knows no stream."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from client.address import is_loopback, rest_url
from client.errors import CannotConnect
from client.handshake import told

WAIT_S: Final = 120.0
"""Time in which a server must say something, s: the longest clip takes it a part of that."""

TOO_LONG: Final = (
    "closed the connection while the recording was being sent; it may be longer than the server takes "
    "(DELTASPOT_CLIP_BYTES)"
)


def post(url: str, path: str, body: bytes, kind: str = "application/octet-stream", key: str | None = None) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Post to `path` of the server at `url`, which may be named as for a stream; return the JSON that comes back.

    Raises:
        CannotConnect: there is no server, or it refuses; the message says why.
    """
    headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = Request(rest_url(url, path), body, headers)  # noqa: S310 (the user's own)
    direct = [ProxyHandler({})] if is_loopback(urlsplit(request.full_url).hostname) else []
    try:
        with build_opener(*direct).open(request, timeout=WAIT_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise CannotConnect(f"{url} refuses: {told(error.read()) or error.reason} ({error.code})") from None
    except URLError as error:
        if isinstance(error.reason, ConnectionError) and not isinstance(error.reason, ConnectionRefusedError):
            raise CannotConnect(f"the server at {url} {TOO_LONG}") from None
        raise CannotConnect(f"no server answers at {url}: {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise CannotConnect(f"the server at {url} went away: {str(error) or type(error).__name__}") from None
    except ValueError:
        raise CannotConnect(f"what answers at {url} is no deltaspot server") from None
