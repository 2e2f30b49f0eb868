"""Fixtures that several test modules share: the data beside the repository, the shipped model, the sample."""

from __future__ import annotations

import io
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import structlog
import uvicorn
from fastapi import FastAPI
from hypothesis import settings
from numpy.typing import NDArray

from models.background import Background
from models.checkpoint import load_checkpoint, save, shipped_path
from models.config import FrontEndConfig, ModelConfig
from models.network import Network
from service import logs
from service.commands.serve import uvicorn_config
from service.server import Server
from service.settings import Settings
from tests import browser
from tests.own_words import background_of_sample
from tests.programs import lacking

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SMALL = ModelConfig(
    frontend=FrontEndConfig(bands=8, treble=2),
    stride=2,
    kernel=3,
    channels=32,
    layers=2,
    heads=2,
    hidden=48,
    span=16,
    filters=(16,),
)
"""A network so small that torch judges it in milliseconds, with one of everything."""


PATIENT = {"lag_s": 60.0}
"""What keeps a test's server from shedding precision, and so from other verdicts, on a busy machine."""


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Configure logging into memory; calling the fixture's value parses what was written."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")
signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and with it whatever a test started
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what a test starts would inherit that it is ignored, as under nohup


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes milliseconds first."""
    items.sort(key=lambda item: item.get_closest_marker("system") is not None)


def _beside(name: str) -> Path:
    """`../shared/<name>`; where it is absent the test is skipped, or fails; see `lacking`."""
    folder = SHARED / name
    if not folder.is_dir():
        lacking(f"needs recordings in {folder}, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the public recordings (tar archives of clips, noise, sentences)."""
    return _beside("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Directory of the published KWT-1."""
    return _beside("models")


@pytest.fixture(scope="session")
def network() -> Network:
    """The shipped model, compiled."""
    compiled = Network(load_checkpoint(shipped_path()))
    compiled.warm_up()
    return compiled


@pytest.fixture(scope="session")
def spoken() -> NDArray[np.int16]:
    """The sample recording: ten keywords and three other words, 16 kHz."""
    samples, _ = soundfile.read(ROOT / "client" / "samples" / "commands.flac", dtype="int16")
    return samples


@dataclass(frozen=True)
class Running:
    """A server on a real socket, in a thread of this process."""

    server: Server
    app: FastAPI
    port: int

    @property
    def http(self) -> str:
        """Where REST is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def stream(self) -> str:
        """Where streams are opened."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"


Serving = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Enter with settings to get a server that runs with them."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Running]:
        server = Server(Settings(port=0, **(PATIENT | settings)))
        config = uvicorn_config(server)
        web = uvicorn.Server(config)
        thread = threading.Thread(target=web.run)
        thread.start()
        try:
            while not server.ready:
                assert thread.is_alive(), "the server did not start"
                threading.Event().wait(0.01)
            yield Running(server, config.app, web.servers[0].sockets[0].getsockname()[1])
        finally:
            web.should_exit = True
            thread.join()

    return start


@pytest.fixture(scope="session")
def running(serving: Serving) -> Iterator[Running]:
    """A server with default settings, shared by all tests that leave it as it was."""
    with serving() as one:
        yield one


@pytest.fixture(scope="session")
def background(network: Network, spoken: NDArray[np.int16]) -> Background:
    """One that knows the sample's words but `seven`."""
    return background_of_sample(network, spoken)


@pytest.fixture(scope="session")
def able(network: Network, background: Background, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can enrol."""
    path = tmp_path_factory.mktemp("able") / "able.safetensors"
    save(replace(network.checkpoint, background=background.arrays()), path)
    return path


@pytest.fixture(scope="session")
def learning(serving: Serving, able: Path) -> Iterator[Running]:
    """A server that can enrol, its other settings the default ones; shared as `running` is."""
    with serving(model=able) as one:
        yield one


@pytest.fixture(scope="session")
def chromium() -> Iterator[str]:
    """A Chromium that every test without a microphone opens its tab in."""
    with browser.chromium() as address:
        yield address
