"""The image: built without a Docker engine, started as nobody in particular, asked for words, stopped politely."""

import asyncio
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from client.connection import connect
from client.sources import AudioFile
from service.protocol import Detection
from tests.programs import need

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "client" / "samples" / "commands.flac"
LARGEST_MB = 700
BUILD_S, START_S = 900, 120
# The build machine's way to its package index: certificates and pip's configuration, where it has any.
VOLUMES = [
    option
    for path in ("/etc/ssl/certs", "/etc/pip.conf")
    if Path(path).exists()
    for option in ("--volume", f"{path}:{path}:ro")
]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    """Run buildah on a store of its own, in a chroot instead of a container."""
    need("buildah", "mmdebstrap")
    folder = tmp_path_factory.mktemp("image")
    store = ["--root", f"{folder}/store", "--runroot", f"{folder}/run"]

    def run(*arguments):
        command = ["buildah", *store, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    run.store, run.folder = store, folder
    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(buildah):
    """The image over a base like python:3.11-slim-bookworm, made from Debian's packages; a container of it."""
    base = buildah.folder / "base.tar"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-venv", "bookworm", base],
        check=True,
        timeout=BUILD_S,
    )
    scratch = buildah("from", "scratch")
    buildah("add", "--quiet", scratch, str(base), "/")
    buildah("commit", "--quiet", scratch, "localhost/base")
    base.unlink()
    isolation = ["--isolation", "chroot", "--network", "host", "--format", "docker"]
    buildah("build", *isolation, *VOLUMES, "--build-arg", "BASE=localhost/base", "--tag", "localhost/deltaspot", ".")
    return buildah("from", "localhost/deltaspot")


def inside(buildah, container, *command):
    return buildah("run", "--isolation", "chroot", "--user", "10001", container, "--", *command)


def test_server_runs_as_nobody_and_hears_words(buildah, image):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--isolation", "chroot", "--user", "10001", "--env", f"DELTASPOT_PORT={port}"]
    command = ["buildah", *buildah.store, "run", *options, image, "--", "entrypoint", "serve"]
    server = subprocess.Popen(command, start_new_session=True)
    try:
        ready(f"http://127.0.0.1:{port}/readyz", server)
        words = asyncio.run(listen(f"http://127.0.0.1:{port}"))
    finally:
        for pid in children(server.pid)[-1:]:
            subprocess.run(["kill", "-TERM", str(pid)], check=False)  # the server itself; what is around it follows
        server.wait(60)
    assert len(words) > 3


def test_image_holds_no_torch_and_is_small(buildah, image):
    listed = inside(buildah, image, "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    size = inside(buildah, image, "du", "--summarize", "--block-size=1M", "/opt", "/usr")
    megabytes = sum(int(line.split()[0]) for line in size.splitlines())
    assert listed == "None"
    assert 100 < megabytes < LARGEST_MB


def test_kernels_came_with_the_image(buildah, image):
    code = (
        "from models.checkpoint import load_checkpoint, shipped_path; from models.network import Network;"
        "from models import step; Network(load_checkpoint(shipped_path())).warm_up();"
        "print(sum(step.step.stats.cache_hits.values()), sum(step.step.stats.cache_misses.values()))"
    )
    hits, misses = inside(buildah, image, "sh", "-c", f'entrypoint --version >&2; python -c "{code}"').split()
    assert int(hits) > 0
    assert int(misses) == 0


def test_image_cannot_be_written_to(buildah, image):
    said = inside(buildah, image, "sh", "-c", "id -u; touch /opt/deltaspot/x /x 2>&1 || echo refused")
    assert said.splitlines()[0] == "10001"
    assert said.splitlines()[-1] == "refused"


def ready(url, server):
    deadline, pause = time.monotonic() + START_S, threading.Event()
    while True:
        assert server.poll() is None, "the server stopped"
        assert time.monotonic() < deadline, "the server is not ready"
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        pause.wait(0.2)


async def listen(url):
    async with connect(url) as spotter:
        spotter.play(AudioFile(SAMPLE, speed=0))
        return [event.keyword async for event in spotter if isinstance(event, Detection)]


def children(pid):
    """Processes below one of ours, whichever thread started them, deepest last; none if it is gone."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    below = [int(child) for file in listed for child in file.read_text().split()]
    return below + [grandchild for child in below for grandchild in children(child)]
