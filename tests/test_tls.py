"""The same doors behind TLS: who trusts the certificate comes in, who does not says so, and plain text harms nobody."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from client.connection import connect
from client.errors import CannotConnect
from client.rest import post
from service.commands.serve import uvicorn_config
from service.protocol import Closed, Detection
from service.server import Server
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for this machine, signed by itself; its key lies beside it."""
    return write_certificate(tmp_path_factory.mktemp("tls") / "server.pem", ec.generate_private_key(ec.SECP256R1()))


def write_certificate(path: Path, key: Any) -> Path:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    known_as = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName(known_as), critical=False)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        key, hashes.SHA256()
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(key.private_bytes(*form))
    return path


@pytest.fixture(scope="module")
def port(serving: Callable[..., Any], certificate: Path) -> Iterator[int]:
    with serving(host="127.0.0.1", tls_cert=certificate, tls_key=certificate.with_suffix(".key")) as running:
        yield running.port


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    """Clients of this process trust the certificate, as users make them: through OpenSSL's own variable."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


async def words(url: str, samples: np.ndarray) -> list[str]:
    async def sound() -> Any:
        for at in range(0, len(samples), 1_600):
            yield samples[at : at + 1_600].astype("<i2").tobytes()

    async with asyncio.timeout(60), connect(url) as spotter:
        spotter.play(sound())
        events = [event async for event in spotter]
    assert isinstance(events[-1], Closed)
    return [event.keyword for event in events if isinstance(event, Detection)]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("url", ["wss://localhost:{}", "https://127.0.0.1:{}/v1/stream"])
async def test_words_are_heard_through_tls(port: int, running: Any, spoken: np.ndarray, url: str) -> None:
    heard = await words(url.format(port), spoken)
    assert heard == await words(running.http, spoken) != []


@pytest.mark.usefixtures("trusted")
def test_clips_are_judged_through_tls(port: int, spoken: np.ndarray) -> None:
    answer = post(f"wss://localhost:{port}", "/v1/detect?encoding=s16le", spoken.astype("<i2").tobytes())
    assert answer["detections"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_in_use_are_spoken(port: int, certificate: Path, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=certificate)
    context.minimum_version = context.maximum_version = version
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_stranger_is_not_trusted(port: int) -> None:
    with pytest.raises(CannotConnect, match="certificate"):
        await words(f"wss://localhost:{port}", np.zeros(0))


@pytest.mark.usefixtures("trusted")
async def test_plain_text_and_noise_harm_nobody(port: int, spoken: np.ndarray) -> None:
    listening = asyncio.create_task(words(f"wss://localhost:{port}", spoken))
    for noise in (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(99), bytes(range(256))):
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            if noise[:1] != b"\x16":  # a record that has not come to its end may still do so
                assert not (await reader.read()).startswith(b"HTTP")
            writer.close()
    with pytest.raises(CannotConnect):
        await words(f"ws://localhost:{port}", np.zeros(0))
    assert await listening


def test_certificate_is_read_again_whatever_its_kind_and_a_broken_one_is_not(port: int, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)

    def reload() -> httpx.Response:
        return httpx.post(f"https://localhost:{port}/v1/reload", verify=trusting, timeout=60)

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    old = certificate.read_text()
    assert shown() == old
    write_certificate(certificate, rsa.generate_private_key(65_537, 2_048))
    renewed = certificate.read_text()
    assert reload().status_code == 204
    assert shown() == renewed != old
    trusting.load_verify_locations(certificate)
    certificate.write_text(old)  # not of the key beside it
    answer = reload()
    assert answer.status_code == 422
    assert "no certificate with its key" in answer.json()["message"]
    assert shown() == renewed
    certificate.write_text(renewed)


def test_the_containers_health_check_finds_the_door_with_tls_and_without(port: int, running: Any) -> None:
    line = re.search(r"HEALTHCHECK.*\\\n *CMD (.*)\n", (ROOT / "Dockerfile").read_text())
    assert line
    program, *arguments = json.loads(line[1])
    assert program == "python"

    def healthy(**environment: str) -> bool:
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        return done.returncode == 0

    assert healthy(DELTASPOT_PORT=str(port), DELTASPOT_TLS_CERT="server.pem")
    assert healthy(DELTASPOT_PORT=str(running.port))
    assert not healthy(DELTASPOT_PORT=str(port))


def test_certificate_that_is_none_stops_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "server.pem"
    broken.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        uvicorn_config(Server(Settings(tls_cert=broken))).load()
