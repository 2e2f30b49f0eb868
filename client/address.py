"""Any way to name a server -> the addresses of what it has. Asks nobody."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from client.errors import SettingError

STREAM: Final = "/v1/stream"


def stream_url(url: str) -> str:
    """A server's name -> its WebSocket's address.

    Args:
        url: scheme and path may be left out. One that ends in `/` is where a proxy has the server, such as
            `https://host/deltaspot/`; any other path is the WebSocket's own.

    Raises:
        SettingError: if no server can have that name.
    """
    parts = _split(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = re.sub("^$|/+$", STREAM, parts.path)
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def rest_url(url: str, path: str) -> str:
    """The same -> the address of a path of REST, such as `/v1/detect?point=dense`; raises alike."""
    parts = urlsplit(stream_url(url))
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{parts.netloc}{parts.path.rpartition(STREAM)[0]}{path}"


def is_loopback(host: str | None) -> bool:
    """Whether whoever has that name is on this machine, to which no proxy leads."""
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="ws")
        _port, _name = parts.port, (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise SettingError(f"{url} is no server's address: {error}") from None
    return parts
