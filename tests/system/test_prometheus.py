"""The real Prometheus and Alertmanager on the real server: ratios, every query, an overload and its end, a picture."""

import asyncio
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from client.connection import connect
from client.sources import AudioFile
from models.checkpoint import load_checkpoint, save, shipped_path
from service.protocol import Closed, Heartbeat
from tests.programs import need

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "prometheus"
SAMPLE = ROOT / "client" / "samples" / "commands.flac"
PATIENCE_S = 60
WELCOMING = {"DELTASPOT_LAG_S": "60", "DELTASPOT_BEHIND_S": "600"}
"""Settings of a server that neither refuses nor ends a stream for its lag, so that a test can make it as it likes."""


def until(check, what):
    """The first true value of `check()`; servers take their time to see each other."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not (value := check()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        pause.wait(0.1)
    return value


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def process(log, *command):
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=os.environ | WELCOMING)
        try:
            yield started
        finally:
            started.terminate()
            started.wait(30)


class Receiver(BaseHTTPRequestHandler):
    """What Alertmanager calls: keeps each notice's status by alert."""

    notices: list[tuple[str, str]] = []  # noqa: RUF012  one receiver for all tests of this module

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.notices.extend((alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def overgrown(path):
    """A checkpoint thirty times as deep as the shipped one: a model too large for the machine."""
    shipped = load_checkpoint(shipped_path())
    layers, times = shipped.config.layers, 30
    weights = dict(shipped.weights)
    for name, array in shipped.weights.items():
        if found := re.fullmatch(r"(blocks\.)(\d+)(\..*)", name):
            for copy in range(1, times):
                weights[f"{found[1]}{int(found[2]) + copy * layers}{found[3]}"] = array
    config = dataclasses.replace(shipped.config, layers=layers * times)
    save(dataclasses.replace(shipped, config=config, weights=weights, points={}), path)
    return path


def configure(folder, server, overloaded, alertmanager, receiver):
    """The committed configuration, with this test's addresses, and waits that suit a test."""
    prometheus = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    prometheus["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    (job,) = (job for job in prometheus["scrape_configs"] if job["job_name"] == "deltaspot")
    job["static_configs"][0]["targets"] = [f"127.0.0.1:{server}"]
    prometheus["scrape_configs"] = [
        job,
        {**job, "job_name": "overgrown", "static_configs": [{"targets": [f"127.0.0.1:{overloaded}"]}]},
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    shutil.copy(CONFIG / "recording.yml", folder)
    (folder / "alerts.yml").write_text((CONFIG / "alerts.yml").read_text().replace("for: 30s", "for: 2s"))
    alerts = yaml.safe_load((CONFIG / "alertmanager.yml").read_text())
    alerts["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    alerts["receivers"][0]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{receiver}/"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alerts))


@dataclasses.dataclass(frozen=True)
class Site:
    """Where everything is, and what the clients were told."""

    server: str
    overloaded: str
    prometheus: str
    alertmanager: str
    told: list[dict[str, float]] = dataclasses.field(default_factory=list)
    totals: list[Closed] = dataclasses.field(default_factory=list)

    def ask(self, query):
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def value(self, query):
        result = self.ask(query)
        return float(result[0]["value"][1]) if result else None


async def endless():
    """The sample again and again, as fast as it is taken."""
    while True:
        async for block in AudioFile(SAMPLE, speed=0):
            yield block


async def listen(url, **settings):
    """Stream the sample; return the last heartbeat and the totals."""
    async with connect(url, heartbeat_ms=100, **settings) as spotter:
        spotter.play(AudioFile(SAMPLE, speed=0))
        events = [event async for event in spotter]
    return [e for e in events if isinstance(e, Heartbeat)][-1], events[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Servers, Prometheus and Alertmanager, after two streams and a clip."""
    need("prometheus", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("site")
    ports = [free_port() for _ in range(4)]
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    configure(folder, *ports[:2], ports[3], receiver.server_port)
    server, overloaded, prometheus, alertmanager = (f"http://127.0.0.1:{port}" for port in ports)
    serve = (sys.executable, "-m", "service.cli", "serve", "--port")
    urls = []
    with ExitStack() as running:
        for url, command in {
            f"{server}/readyz": (*serve, str(ports[0])),
            f"{overloaded}/readyz": (*serve, str(ports[1]), "--model", str(overgrown(folder / "big.safetensors"))),
            f"{prometheus}/-/ready": (
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{ports[2]}",
            ),
            f"{alertmanager}/-/ready": (
                "prometheus-alertmanager",
                f"--config.file={folder}/alertmanager.yml",
                f"--storage.path={folder}/alerts",
                f"--web.listen-address=127.0.0.1:{ports[3]}",
                "--cluster.listen-address=",
            ),
        }.items():
            running.enter_context(process(folder / f"{len(urls)}.log", *command))
            urls.append(url)
        for url in urls:
            until(lambda url=url: answers(url), url)
        yield stream(Site(server, overloaded, prometheus, alertmanager))
    receiver.shutdown()
    thread.join(10)
    receiver.server_close()


def stream(site):
    """Have the sample heard by two streams and judged once as a clip, and Prometheus know of it."""
    until(lambda: site.value('deltaspot_tokens_total{job="deltaspot"}') == 0, "a scrape before any audio")

    async def both():
        return await asyncio.gather(*(listen(site.server, point=point) for point in ("shipped", "dense")))

    for heartbeat, closed in asyncio.run(both()):
        site.told.append({name.removeprefix("macs_"): value for name, value in heartbeat if name.startswith("macs_")})
        site.totals.append(closed)
    clip = httpx.post(f"{site.server}/v1/detect", content=SAMPLE.read_bytes(), timeout=30).raise_for_status()
    site.told.append(clip.json()["macs"])
    tokens = 3 * site.totals[0].totals.tokens
    until(lambda: (site.value('deltaspot_tokens_total{job="deltaspot"}') or 0) >= tokens, "a scrape after the audio")
    until(lambda: site.value("job:deltaspot_macs_skipped_vs_causal:ratio_rate5m"), "an evaluation after the audio")
    return site


@pytest.mark.parametrize("baseline", ["window", "causal"])
def test_ratios_are_what_the_clients_were_told(site, baseline):
    skipped = f"skipped_vs_{baseline}"
    told = 1 - sum(t["done"] for t in site.told) / sum(t["done"] / (1 - t[skipped]) for t in site.told)
    query = f'job:deltaspot_macs_{skipped}:ratio_rate5m{{job="deltaspot"}}'
    until(lambda: site.value(query) == pytest.approx(told, abs=0.01), f"a ratio of {told}, but {site.value(query)}")


def test_totals_arrive_to_the_last_multiplication(site):
    done = sum(closed.totals.macs_done for closed in site.totals)
    assert site.value('sum(deltaspot_macs_done_total{job="deltaspot"})') >= done
    assert site.value('sum(deltaspot_sessions_total{job="deltaspot", outcome="normal"})') == len(site.totals)


def queries():
    for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield from (pytest.param(t["expr"], id=f"{path.stem}-{panel['title']}") for t in panel["targets"])


@pytest.mark.parametrize("query", list(queries()))
def test_every_panel_has_data(site, query):
    until(lambda: site.ask(query), query)  # rules take their turn


def test_exemplars_lead_from_a_bucket_to_a_session(site):
    body = httpx.get(f"{site.server}/metrics", headers={"Accept": "application/openmetrics-text"}).text
    assert re.search(r'deltaspot_verdict_seconds_bucket\{le="[^"]+"\} \S+ # \{session="\w+"\}', body)


def test_alerts_are_loaded(site):
    groups = httpx.get(f"{site.prometheus}/api/v1/rules").json()["data"]["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(health.values()) == {"ok"}


def test_an_overload_raises_the_alert_and_its_end_resolves_it(site):
    def active():
        alerts = httpx.get(f"{site.alertmanager}/api/v2/alerts", params={"filter": "alertname=DeltaspotLag"}).json()
        return [alert["labels"]["job"] for alert in alerts]

    async def stay(begun):
        async with connect(site.overloaded, point="dense", heartbeat_ms=100) as spotter:
            spotter.play(endless())
            async for event in spotter:
                if isinstance(event, Heartbeat):
                    begun.set()

    async def flood():
        """Ever more streams without an end, as every turn takes longer with each of them, until somebody is told."""
        told = asyncio.create_task(asyncio.to_thread(until, active, "the alert is raised"))
        streams = []
        while not told.done():
            begun = asyncio.Event()
            streams += [asyncio.create_task(stay(begun)) for _ in range(16)]
            await asyncio.wait((told, asyncio.create_task(begun.wait())), return_when=asyncio.FIRST_COMPLETED)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await told

    assert not active()
    asyncio.run(flood())
    until(lambda: ("DeltaspotLag", "firing") in Receiver.notices, "the operators are told")
    until(lambda: ("DeltaspotLag", "resolved") in Receiver.notices, "the alert is resolved")
    assert not active()
    asyncio.run(listen(site.server))


def test_panels_are_drawn(site, tmp_path):
    script = ROOT / "deploy" / "grafana" / "render.py"
    out = tmp_path / "work.png"
    subprocess.run([sys.executable, script, site.prometheus, "work", out, "--minutes", "2"], check=True, timeout=60)
    from matplotlib import image

    picture = image.imread(out)
    assert min(picture.shape[:2]) > 400
    assert len(np.unique((picture[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50
