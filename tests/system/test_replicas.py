"""Two servers behind nginx, as an operator has them: one is killed, and no listener loses or hears a word twice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from client.connection import Interrupted
from service.commands.own_server import answers, free_port
from service.protocol import Detection, Ready
from tests.programs import need
from tests.servers import detections, listen, process, until

pytestmark = pytest.mark.system

STREAMS = int(os.environ.get("STREAMS", "8"))
"""Streams at the moment of the kill, about half of them on the server that dies."""
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{
        server 127.0.0.1:{ports[0]};
        server 127.0.0.1:{ports[1]};
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, ports: tuple[int, int]) -> Iterator[int]:
    """A proxy before two servers that already answer -> its port."""
    port = free_port(0)
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, ports=ports, port=port))
    command = ["nginx", "-p", folder, "-e", folder / "error.log", "-c", config]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as proxy:
        try:
            while not answers(f"http://127.0.0.1:{port}/readyz"):
                assert proxy.poll() is None, "nginx did not start"
            yield port
        finally:
            proxy.terminate()


def sessions(port: int) -> int:
    """Streams that a server has open by its own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        (count,) = re.findall(r"^deltaspot_sessions_open\S* (\S+)$", answer.read().decode(), re.MULTILINE)
    return int(float(count))


def test_killed_replica_costs_no_listener_a_word(spoken: np.ndarray, tmp_path: Path) -> None:
    need("nginx")
    ports = free_port(0), free_port(0)
    told: list[list[object]] = [[] for _ in range(STREAMS)]

    async def story(url: str, victim: subprocess.Popen[bytes]) -> int:
        gate = asyncio.Event()
        listening = [asyncio.create_task(listen(url, spoken, one, {80: gate})) for one in told]
        for one in told:
            await until(one, Detection)
        held = await asyncio.to_thread(sessions, ports[0])
        victim.send_signal(signal.SIGKILL)
        gate.set()
        await asyncio.gather(*listening)
        return held

    welcoming = {"DELTASPOT_LAG_S": "60", "DELTASPOT_BEHIND_S": "600"}
    with process(ports[0], **welcoming) as first, process(ports[1], **welcoming), nginx(tmp_path, ports) as port:
        url = f"ws://127.0.0.1:{port}"
        undisturbed = detections(asyncio.run(listen(url, spoken, [], {})))
        held = asyncio.run(story(url, first))
        assert sessions(ports[1]) == 0
    assert [word for _, word, _ in undisturbed] == WORDS
    assert 0 < held < STREAMS
    assert sum(any(isinstance(event, Interrupted) for event in one) for one in told) == held
    for one in told:
        assert len({event.session for event in one if isinstance(event, Ready)}) == 1
        assert detections(one) == undisturbed
