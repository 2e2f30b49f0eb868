"""Who may do what: API keys, tickets for browsers, origins, and limits per key.

A key is 32 random bytes in text form; the file of keys holds its SHA-256 only. A line of that file:

    NAME  SHA256-HEX  SCOPE[,SCOPE...]  [sessions=N] [speed=X] [requests=N/minute[;N/day]]

A key with this much randomness needs no slow hash: there is nothing to guess. Knows no sockets and no streams.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import urlsplit

import jwt
from limits import parse_many
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from service.errors import Forbidden, TooFast, Unauthorised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from service.settings import Settings


class Scope(StrEnum):
    """What a key may be used for."""

    STREAM = "stream"
    DETECT = "detect"
    ADMIN = "admin"


ALGORITHM: Final = "HS256"
wall_clock = time.time


class KeyFileError(ValueError):
    """A line in the file of keys that cannot be read; the message says which."""


@dataclass(eq=False)
class Caller:
    """Somebody with a key, or anybody.

    Attributes:
        name: of the key, for logs; several may have the same.
        digest: SHA-256 of the key, in hex; it tells keys apart.
        sessions: streams at the same time, at most.
        speed: times real time, if less than the server's.
        requests: rates such as `60/minute;1000/day`; all of them hold.
        open: streams now.
    """

    name: str
    digest: str
    scopes: frozenset[Scope]
    sessions: int | None = None
    speed: float | None = None
    requests: str | None = None
    open: int = field(default=0)


class Callers(Protocol):
    """Where keys are looked up."""

    def find(self, key: str | None) -> Caller:
        """Return the owner of a key.

        Raises:
            Unauthorised: nobody was given it.
        """

    def behind(self, digest: str) -> Caller:
        """Return the owner of the key with this digest; a ticket holds it.

        Raises:
            Unauthorised: the key was withdrawn.
        """


class Anyone:
    """No keys: everybody is welcome to everything."""

    def __init__(self) -> None:
        self._caller = Caller("anyone", "", frozenset(Scope))

    def find(self, _key: str | None) -> Caller:
        """Whoever it is."""
        return self._caller

    def behind(self, _digest: str) -> Caller:
        """Whoever it is."""
        return self._caller


class Keys:
    """The keys of a file.

    Attributes:
        callers: their owners, by the SHA-256 of the key, in hex.
    """

    def __init__(self, callers: Iterable[Caller]) -> None:
        """Use these callers."""
        self.callers = {caller.digest: caller for caller in callers}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of keys.

        Raises:
            KeyFileError: naming the line at fault.
        """
        callers = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise KeyFileError(f"{path} is no text in UTF-8: {error}") from None
        for number, line in enumerate(lines, 1):
            if words := words_of(line):
                try:
                    callers.append(_entry(words))
                except (ValueError, KeyError) as error:
                    raise KeyFileError(f"{path}, line {number}: {error}") from None
        return cls(callers)

    def adopt(self, fresh: Keys) -> None:
        """Take over a newer file; a key that is still in it keeps the count of its open streams."""
        for digest, caller in fresh.callers.items():
            if (known := self.callers.get(digest)) is not None:
                known.name, known.scopes, known.sessions = caller.name, caller.scopes, caller.sessions
                known.speed, known.requests = caller.speed, caller.requests
                fresh.callers[digest] = known
        self.callers = fresh.callers

    def find(self, key: str | None) -> Caller:
        """Return the owner of a key, in the same time whichever it is."""
        if not key:
            raise Unauthorised("this needs an API key: Authorization: Bearer KEY")
        digest, found = hash_key(key), None
        for known, caller in self.callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthorised("nobody was given this API key")
        return found

    def behind(self, digest: str) -> Caller:
        """Return the owner of the key with this digest."""
        if digest not in self.callers:
            raise Unauthorised("the key behind this ticket was withdrawn")
        return self.callers[digest]


class Guard:
    """Says who is calling, and whether they may."""

    def __init__(self, callers: Callers, settings: Settings) -> None:
        self._callers, self._origins, self._ticket_s = callers, settings.origins, settings.ticket_s
        self._hosts = set(map(_host_of, settings.origins))
        self._keyless = isinstance(callers, Anyone)
        given = settings.ticket_secret
        self._secret = given.get_secret_value() if given else secrets.token_hex(32)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self.anyone = Anyone().find(None)

    def request(self, scope: Scope, headers: Mapping[str, str]) -> Caller:
        """Check the page that a request comes from, if it does from one, and its key.

        Raises:
            Unauthorised, Forbidden, TooFast: by whom, from where, what, how often.
        """
        self._know(headers, scope)
        caller = self._callers.find(_bearer(headers))
        return self._allow(caller, scope)

    def upgrade(self, headers: Mapping[str, str], ticket: str | None) -> Caller:
        """Check what opens a WebSocket: the page's origin, and a ticket or a key.

        Raises:
            Unauthorised, Forbidden, TooFast: by whom, from where, how often.
        """
        self._know(headers, Scope.STREAM)
        caller = self._redeem(ticket) if ticket else self._callers.find(_bearer(headers))
        self._allow(caller, Scope.STREAM)
        if caller.sessions is not None and caller.open >= caller.sessions:
            raise TooFast(f"this key may have {caller.sessions} streams at a time")
        return caller

    def ticket(self, caller: Caller) -> str:
        """A ticket that opens streams for a short time, in the caller's name."""
        claims = {"sub": caller.digest, "exp": int(wall_clock()) + self._ticket_s, "jti": secrets.token_hex(8)}
        return jwt.encode(claims, self._secret, ALGORITHM)

    def _know(self, headers: Mapping[str, str], scope: Scope) -> None:
        """Refuse pages of strangers: without keys, a browser would carry the wishes of any page that is visited.

        Where there are none, a name proves nothing, either: who owns it may let it lead here once the page is loaded.
        A page that reads from its own host names no origin; so what is the operator's is never asked for by a name.
        """
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin in self._origins:
            return
        if origin is not None and _host_of(origin) != host:
            help_ = "the operator may name them in DELTASPOT_ORIGINS, and a proxy must hand on Host"
            raise Forbidden(f"pages of {origin} may ask for nothing at host {host}; {help_}")
        from_a_page = origin is not None or scope is Scope.ADMIN
        if self._keyless and from_a_page and host not in self._hosts and not _is_lasting(host):
            help_ = "the operator may name its page in DELTASPOT_ORIGINS, or hand out keys"
            raise Forbidden(f"without keys, no name but localhost is trusted, and host {host} is one; {help_}")

    def _redeem(self, ticket: str) -> Caller:
        try:
            claims: dict[str, Any] = jwt.decode(ticket, self._secret, [ALGORITHM], options={"require": ["sub", "exp"]})
        except jwt.InvalidTokenError:
            raise Unauthorised("the ticket is expired or was not made here") from None
        return self._callers.behind(claims["sub"])

    def _allow(self, caller: Caller, scope: Scope) -> Caller:
        if scope not in caller.scopes:
            raise Forbidden(f"this key is not for {scope.value}")
        rates = parse_many(caller.requests) if caller.requests else []
        if not all(self._limiter.test(rate, caller.digest) for rate in rates):
            raise TooFast(f"this key may make {caller.requests} requests")
        for rate in rates:
            self._limiter.hit(rate, caller.digest)
        return caller


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hex: what the file of keys holds."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key to hand out."""
    return f"ds_{secrets.token_urlsafe(32)}"


def words_of(line: str) -> list[str]:
    """A line of the file of keys without its comment."""
    return line.partition("#")[0].split()


def _host_of(origin: str) -> str | None:
    """Host and port of a page's origin; None for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_lasting(host: str) -> bool:
    """Whether nobody can let a Host lead elsewhere: it is an address or `localhost`, with a port or without."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _bearer(headers: Mapping[str, str]) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _entry(words: list[str]) -> Caller:
    """One line of the file of keys."""
    if len(words) < 3:
        raise ValueError("a line is NAME SHA256 SCOPES")
    name, digest, scopes, *rest = words
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("the second word is no SHA-256 in hex")
    if unknown := set(scopes.split(",")) - set(Scope):
        raise ValueError(f"{min(unknown)!r} is no scope; there are {', '.join(Scope)}")
    return Caller(name, digest, frozenset(map(Scope, scopes.split(","))), **dict(map(_option, rest)))


def _option(word: str) -> tuple[str, Any]:
    """A word of a line -> a field of `Caller` and its value."""
    name, _, value = word.partition("=")
    if name not in OPTIONS:
        raise ValueError(f"unknown option {name}; there are {', '.join(OPTIONS)}")
    read, example = OPTIONS[name]
    try:
        return name, read(value)
    except ValueError:
        raise ValueError(f"{word} cannot be used; {example} can") from None


def _sessions(text: str) -> int:
    if (sessions := int(text)) < 1:
        raise ValueError
    return sessions


def _speed(text: str) -> float:
    if not 1 <= (speed := float(text)) < math.inf:
        raise ValueError
    return speed


def _rate(text: str) -> str:
    if any(rate.amount < 1 for rate in parse_many(text)):
        raise ValueError
    return text


OPTIONS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "sessions": (_sessions, "sessions=10, or another whole number from 1 on,"),
    "speed": (_speed, "speed=2.5, or another number from 1 on,"),
    "requests": (_rate, "requests=60/minute"),
}
"""What may stand at the end of a line: how it is read, and an example."""
