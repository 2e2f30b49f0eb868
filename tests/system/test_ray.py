"""A real Ray cluster on this machine: replicas of the server of which one is killed, and a scan spread over workers."""

import asyncio
import os
import signal
import socket
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from client.connection import connect
from client.sources import AudioFile
from service.commands.scan import app as scan
from service.protocol import Detection

pytestmark = [
    pytest.mark.system,
    # Ray's own: sockets and files it leaves to the garbage collector, and calls that its dependencies deprecated.
    pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "client" / "samples" / "commands.flac"
CLIPS = 200
PATIENCE = {
    "PYTHONPATH": str(ROOT),
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""Environment of the cluster: where our code is, and limits that a busy machine keeps."""


@pytest.fixture(scope="module")
def cluster():
    """Ray with as many workers as the test asks for, whatever the machine has."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    os.environ |= PATIENCE
    nice = {"worker_niceness": 0}  # Ray is polite to whatever else runs, and a busy machine would never get to it
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _system_config=nice)
    yield ray
    ray.shutdown()
    for name in PATIENCE:
        del os.environ[name]


@pytest.fixture
def replicas(cluster):  # noqa: ARG001  Serve finds the cluster by itself
    """Address of two replicas behind one proxy, and their processes."""
    from ray import serve

    from deploy.ray.app import Deltaspot

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    two = Deltaspot.options(autoscaling_config=None, num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    handle = serve.run(two.bind())
    pids = set()
    while len(pids) < 2:
        pids.add(handle.pid.remote().result(timeout_s=60))
    yield f"http://127.0.0.1:{port}", pids
    serve.shutdown()


async def listen(url, heard):
    """Stream the sample at four times real time; return what was heard and how many connections it took.

    All is computed and nothing shed: what the gates skip depends on a past longer than what a resuming stream replays,
    so that a word may come a token earlier or later; without them the replay is all that reaches a posterior.
    """
    async with connect(url, point="dense", coarsest=1.0) as spotter:
        spotter.play(AudioFile(SAMPLE, speed=4))
        words = []
        async for event in spotter:
            if isinstance(event, Detection):
                words.append((event.keyword, event.end_s))
                heard.set()
    return words, spotter.connections


async def test_streams_survive_the_death_of_a_replica(replicas):
    url, pids = replicas
    (undisturbed, _) = await listen(url, asyncio.Event())
    heard = asyncio.Event()
    streams = [asyncio.create_task(listen(url, heard)) for _ in range(6)]
    await heard.wait()
    os.kill(min(pids), signal.SIGKILL)
    results = await asyncio.gather(*streams)
    assert len(undisturbed) > 3
    assert [words for words, _ in results] == [undisturbed] * len(streams)
    assert sum(connections for _, connections in results) > len(streams)


async def test_a_replica_that_cannot_start_says_so_instead_of_waiting(monkeypatch, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    from deploy.ray.app import build

    (tmp_path / "broken.safetensors").write_bytes(b"no checkpoint")
    monkeypatch.setenv("DELTASPOT_MODEL", str(tmp_path / "broken.safetensors"))
    application = build()
    with pytest.raises(RuntimeError, match="cannot go on"):
        await application.router.lifespan_context(application).__aenter__()


def test_replicas_admit_what_the_environment_says(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    from deploy.ray.app import build

    monkeypatch.setenv("DELTASPOT_SESSIONS", "7")
    assert build().state.server.settings.sessions == 7


async def test_a_replica_that_broke_is_not_healthy():
    pytest.importorskip("ray", reason="needs the extra ray")
    from deploy.ray.app import Deltaspot, build

    replica = SimpleNamespace(app=build())
    await Deltaspot.func_or_class.check_health(replica)
    replica.app.state.server.failed = True
    with pytest.raises(RuntimeError, match="cannot go on"):
        await Deltaspot.func_or_class.check_health(replica)


@pytest.mark.usefixtures("cluster")
def test_a_scan_on_ray_equals_a_scan_here(shared_data, tmp_path):
    clips = tmp_path / "clips"
    with tarfile.open(shared_data / "speech_commands_validation_flac.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".flac")]
        for member in members[:: len(members) // CLIPS]:  # no filter: Python 3.11.2 knows none
            tar.extract(member, clips)
    tables = []
    for name, options in {"here": [], "ray": ["--ray", "local"]}.items():
        out = tmp_path / f"{name}.parquet"
        done = CliRunner().invoke(scan, [str(clips), "--out", str(out), *options])
        assert done.exit_code == 0, done.output
        tables.append(pq.read_table(out))
    assert len(set(tables[0]["path"].to_pylist())) >= CLIPS
    assert tables[0]["keyword"].null_count < len(tables[0])
    assert tables[0].equals(tables[1])
