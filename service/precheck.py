"""What can be wrong with a server's settings, found before it starts: one line that says what to change.

Knows no doors and no streams; leaves nothing behind but the folders that settings name.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import ssl
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import SettingsError

from models.checkpoint import CheckpointError, load_checkpoint
from models.engines import check_engine
from models.kwt_weights import KWTFileError, is_stock
from models.operating import offered
from service.auth import KeyFileError, Keys
from service.server import DEFAULT
from service.settings import PREFIX, Settings, unknown
from service.windows import ClipModel

SECRET_BYTES: Final = 32
"""What a key of HMAC-SHA256 must have, RFC 7518, section 3.2."""

ORIGIN: Final = re.compile(r"(?!http:.*:80$|https:.*:443$)[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")
"""Of a page, as browsers write it: without the port that the scheme has by itself."""


class SettingError(ValueError):
    """A setting with which no server can start; the message names it."""


def read_settings(given: dict[str, Any]) -> Settings:
    """The environment's settings, and those that were `given` instead.

    Raises:
        SettingError: naming every one that is wrong, or that is none.
    """
    if strange := unknown():
        raise SettingError("; ".join(map(_no_setting, strange)))
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = [f"{variable(str(e['loc'][0]))}: {e['msg']}, not {e['input']!r}" for e in error.errors()]
        raise SettingError("; ".join(wrong)) from None
    except SettingsError as error:  # text that is no JSON where JSON is asked for
        name = next((n for n in Settings.model_fields if f'"{n}"' in str(error)), "")
        raise SettingError(f"{variable(name)} must be JSON: `deltaspot serve --settings` shows its default") from None


def check(settings: Settings) -> None:
    """Look for everything that can be found before the start.

    Raises:
        SettingError: for files and folders that are not there or not what they should be.
        CheckpointError, KWTFileError: from their readers.
        OSError: for an address that cannot be listened on.
    """
    _check_models(settings)
    _check_folders(settings)
    _check_keys(settings)
    _check_origins(settings.origins)
    _check_collector(settings.otlp_endpoint)
    certificate(settings)
    if settings.port and settings.port == settings.wyoming_port:
        raise SettingError("DELTASPOT_PORT and DELTASPOT_WYOMING_PORT are the same; two doors need two ports")
    for port in (settings.port, settings.wyoming_port):
        if port:
            _check_address(settings.host, port)


def certificate(settings: Settings) -> ssl.SSLContext | None:
    """The server's certificate with its key, as it lies there now; None for a server without TLS.

    Raises:
        SettingError: a file is not there, or is none of the two.
    """
    chain, key = settings.tls_cert, settings.tls_key
    if chain is None:
        if key is not None:
            raise SettingError("DELTASPOT_TLS_KEY is of no use without DELTASPOT_TLS_CERT")
        return None
    for name, path in (("tls_cert", chain), ("tls_key", key or chain)):
        if not path.is_file():
            raise SettingError(f"{variable(name)}: there is no file {path}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(chain, key)
    except ssl.SSLError as error:
        files = f"{chain} and {key}" if key else chain
        raise SettingError(f"{files}: no certificate with its key, in PEM ({error})") from None
    return context


def variable(name: str) -> str:
    """A setting's name in the environment."""
    return f"{PREFIX}{name.upper()}"


def _no_setting(name: str) -> str:
    """That a variable is misspelt, and what may have been meant."""
    nearest = difflib.get_close_matches(name[len(PREFIX) :].lower(), Settings.model_fields, 1)
    help_ = f"{variable(nearest[0])} is one" if nearest else "`deltaspot serve --settings` shows them all"
    return f"{name} is no setting; {help_}"


def _check_models(settings: Settings) -> None:
    check_engine(settings.engine, settings.device)
    if settings.model is not None and is_stock(settings.model):
        raise SettingError(f"{settings.model} judges clips only; name it in DELTASPOT_MODELS beside a default")
    offered(load_checkpoint(settings.model), settings.methods)
    if DEFAULT in settings.models:
        raise SettingError(f"DELTASPOT_MODELS: {DEFAULT!r} is the name of the checkpoint in DELTASPOT_MODEL")
    for name, path in settings.models.items():
        try:
            if is_stock(path):
                ClipModel.load(name, path)
            else:
                offered(load_checkpoint(path), settings.methods)
        except (CheckpointError, KWTFileError) as error:
            raise SettingError(f"DELTASPOT_MODELS, {name!r}: {error}") from None


def _check_folders(settings: Settings) -> None:
    for name, folder in (("keywords", settings.keywords), ("capture", settings.capture)):
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingError(f"{variable(name)}: {folder} cannot be made: {error.strerror}") from None
    if settings.capture is not None and not os.access(settings.capture, os.W_OK | os.X_OK):
        raise SettingError(f"DELTASPOT_CAPTURE: nothing can be written to {settings.capture}")


def _check_keys(settings: Settings) -> None:
    if settings.keys is not None:
        try:
            Keys.load(settings.keys)
        except KeyFileError as error:
            raise SettingError(f"DELTASPOT_KEYS: {error}") from None
        except OSError as error:
            raise SettingError(f"DELTASPOT_KEYS: {settings.keys} cannot be read: {error.strerror}") from None
    secret = settings.ticket_secret
    if secret is not None and len(secret.get_secret_value().encode()) < SECRET_BYTES:
        raise SettingError(f"DELTASPOT_TICKET_SECRET needs {SECRET_BYTES} bytes: `openssl rand -hex 32` makes them")


def _check_origins(origins: list[str]) -> None:
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            help_ = "a page is https://app.example.org or http://localhost:3000, no path, default port, capitals, *"
            raise SettingError(f"DELTASPOT_ORIGINS: {help_}, not {origin!r}")


def _check_collector(endpoint: str) -> None:
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise SettingError(f"DELTASPOT_OTLP_ENDPOINT: an address is http://collector:4318/v1/traces, not {endpoint!r}")


def _check_address(host: str, port: int) -> None:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server((address[0], port), family=family).close()
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise SettingError(f"cannot listen on {host}, port {port} ({why}); choose another") from None
