"""The Python in client/README.md is run as it stands there, against a server on a real socket."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_connection import Peer, detection, greet, heartbeat, server

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "client" / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["asyncio", "blocking"])
async def test_example_prints_what_was_heard(code):
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.say(detection(0, 10))
        for second in range(1, 16):
            await peer.until(32_000 * second)
            await peer.say(heartbeat(16_000 * second))
        await peer.close()

    async with server(act) as (url, peers):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code.replace("127.0.0.1:8770", url), cwd=ROOT, stdout=subprocess.PIPE
        )
        printed, _ = await process.communicate()
    assert process.returncode == 0
    assert b"yes" in printed
    assert len(peers[0].audio) / 32_000 == pytest.approx(15.8, abs=0.1), "the whole sample was sent"
