"""Recordings -> a table of detections, one process or many; what a stream would have heard, without server or socket.

A table has a row for each detection, and a row without a keyword for a recording in which nothing was heard or that
could not be read. Finished batches are kept beside the output, so a scan that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.aside import aside
from models.checkpoint import load_checkpoint
from models.counting import Count, count
from models.features import Tokens, log_mel
from models.network import Network
from models.offline import softmax
from models.operating import offered
from service.audio import Recording, clip_blocks
from service.protocol import Configure, Detection, Limits, WireError
from service.session import Session, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from models.checkpoint import Checkpoint

AUDIO: Final = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au"})
"""Endings of the files that are taken from a folder; a file that is named itself may have any."""

SUFFIX: Final = ".parquet"
LONGEST_S: Final = 86_400.0
SCHEMA: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("audio_s", pa.float64()),
        pa.field("keyword", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


class ScanError(Exception):
    """A scan that cannot go on; the message says what to do."""


def find(paths: Sequence[Path]) -> list[str]:
    """Files, and every recording in folders and below -> absolute paths, sorted, each once; at least one.

    Raises:
        ScanError: for a path that does not exist, and where there is no recording.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise ScanError(f"{path} does not exist")
        inside = (p for p in path.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())
        found.update(p.absolute() for p in (inside if path.is_dir() else [path]))
    if not found:
        raise ScanError(f"no recordings in {' '.join(map(str, paths))}: expected {', '.join(sorted(AUDIO))}")
    return sorted(str(path) for path in found)


def nameable(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths that a table can hold, and a line on each of the others, whose names are not UTF-8."""
    strange = {path: os.fsencode(path).decode(errors="backslashreplace") for path in paths}
    kept = [path for path in paths if strange[path] == path]
    return kept, [f"{strange[path]}: its name is not UTF-8: rename it" for path in paths if strange[path] != path]


def identity(checkpoint: Checkpoint, point: str) -> dict[str, str]:
    """All that detections depend on besides the recordings, as tables carry it."""
    decides = {name: value for name, value in checkpoint.calibration.items() if name != "made_for"}
    calibration = json.dumps(decides, sort_keys=True)
    rules = hashlib.sha256(calibration.encode()).hexdigest()[:12]
    return {"fingerprint": checkpoint.fingerprint, "calibration": rules, "point": point}


class Scanner:
    """A model that turns batches of paths into tables; Ray calls it in processes of its own."""

    def __init__(self, checkpoint: str, point: str) -> None:
        """Load a checkpoint and compile it."""
        stored = load_checkpoint(Path(checkpoint))
        self._network = Network(stored)
        self._network.warm_up()
        config = self._network.config
        self._spec = Spec("scan", stored.fingerprint, config, offered(stored), stored.calibration)
        if point not in self._network.points:
            raise ScanError(f"the model has no operating point {point}; it has {', '.join(self._network.points)}")
        self._cache = self._network.new_cache(1, point)
        self._configure = Configure(point=point)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Table with a column `path` -> table of `SCHEMA`."""
        rows = [row for path in batch["path"].to_pylist() for row in self._recording(path)]
        return pa.Table.from_pylist(rows, SCHEMA)

    def _recording(self, path: str) -> list[dict[str, Any]]:
        try:
            audio_s, rows = self._judge(Path(path).read_bytes())
        except (WireError, OSError) as error:
            return [{"path": path, "error": str(error)}]
        return [{"path": path, "audio_s": audio_s, **row} for row in rows or [{}]]

    def _judge(self, data: bytes) -> tuple[float, list[dict[str, Any]]]:
        """Bytes of a file -> its length, and a row for each word that was heard."""
        self._cache.reset(0)
        session = Session("scan", self._spec, self._configure, LIMITS)
        detections: list[Detection] = []
        recording = Recording(clip_blocks(data, LONGEST_S))
        for block in recording:
            detections += self._step(session, session.samples(block))
        detections += self._step(session, session.end())
        rows = [d.model_dump(include={"keyword", "score", "start_s", "end_s"}) for d in detections]
        return recording.seconds, [row | {at: recording.place(row[at]) for at in ("start_s", "end_s")} for row in rows]

    def _step(self, session: Session, tokens: Tokens) -> list[Detection]:
        if not tokens.count:
            return []
        frames = log_mel([tokens], self._spec.config)
        logits = self._network.step(self._cache, np.zeros(1, np.int64), frames, np.array([len(frames)]))
        messages = session.judge(softmax(logits), _Alone(self._cache))
        return [message for message in messages if isinstance(message, Detection)]


LIMITS: Final = Limits(frame_bytes=1 << 26, stream_s=LONGEST_S, idle_s=LONGEST_S, speed=1e9)


class _Alone:
    """Vitals of a stream that waits for nobody."""

    latency_ms = lag_ms = compute_s = 0.0
    scale = 1.0

    def __init__(self, cache: Any) -> None:  # noqa: ANN401  a Cache, which importers of this module need not know
        self._cache = cache
        self.cache_bytes: int = cache.bytes_per_row

    @property
    def macs(self) -> Count:
        return count(self._cache, 0)

    def work(self) -> list[float]:
        return []


def batches(paths: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Paths -> tables with one column, `size` paths each."""
    for start in range(0, len(paths), size):
        yield pa.table({"path": list(paths[start : start + size])})


def on_ray(address: str, paths: Sequence[str], checkpoint: str, point: str, size: int) -> Iterator[pa.Table]:
    """Scan on a Ray cluster; every node sees the recordings under the same paths and has the same deltaspot.

    Args:
        address: of the cluster, `auto` for the one this machine belongs to, `local` for one of its own.
        paths: recordings.
        checkpoint: path of the model, on every node.
        point: operating point.
        size: recordings that a worker takes at once.
    """
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=-(-len(paths) // size))
    tables = data.map_batches(
        Scanner,
        fn_constructor_args=(checkpoint, point),
        batch_format="pyarrow",
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
    )
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow")


def unreadable(table: pa.Table, paths: Sequence[str]) -> list[str]:
    """Those of the recordings that could not be read, and why, in a line each."""
    rows = table.filter(pc.and_(pc.is_valid(table["error"]), pc.is_in(table["path"], pa.array(paths, pa.string()))))
    return [f"{row['path']}: {row['error']}" for row in rows.to_pylist()]


class Output:
    """A parquet file in the making: finished batches lie beside it until all are there."""

    def __init__(self, file: Path, identity: dict[str, str]) -> None:
        """Go on with what an earlier scan left.

        Raises:
            ScanError: it was made with another model, calibration or operating point, or is no table at all.
        """
        if file.suffix != SUFFIX:
            raise ScanError(f"--out {file}: a scan is written as parquet, into a file that ends in {SUFFIX}")
        self.file, self.parts = file, file.with_name(f"{file.name}.parts")
        self._schema = SCHEMA.with_metadata(identity)
        for path in self._files():
            if _metadata(path) != self._schema.metadata:
                made = "made with another model, calibration or point"
                raise ScanError(f"{path} was {made}; name another --out or remove it")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._next = len(list(self.parts.glob("*.parquet")))

    def done(self) -> set[str]:
        """Recordings that need not be scanned again; those that could not be read may be readable by now."""
        return set(_read(self._rows())["path"].to_pylist())

    def add(self, table: pa.Table) -> None:
        """Keep a finished batch, whole or not at all."""
        self.parts.mkdir(exist_ok=True)
        self._write(table, self.parts / f"{self._next:08d}.parquet")
        self._next += 1

    def finish(self) -> pa.Table:
        """Merge everything into the file, in the order of paths and times; return it.

        Of a recording that could not be read, only the newest reason is kept, and none once it was read.
        """
        rows = self._rows()
        # Once each: a merge that was interrupted has some twice.
        read = _read(rows).group_by(SCHEMA.names, use_threads=False).aggregate([])
        failed = rows.filter(pc.invert(pc.is_in(rows["path"], read["path"])))
        newest = {row["path"]: row for row in failed.to_pylist()}
        merged = pa.concat_tables([read.cast(SCHEMA), pa.Table.from_pylist(list(newest.values()), SCHEMA)])
        merged = merged.sort_by([("path", "ascending"), ("start_s", "ascending")])
        self._write(merged, self.file)
        if self.parts.exists():
            shutil.rmtree(self.parts)
        return merged

    def _files(self) -> list[Path]:
        return [*([self.file] if self.file.exists() else []), *sorted(self.parts.glob("*.parquet"))]

    def _rows(self) -> pa.Table:
        """What was written so far, the oldest first."""
        return pa.concat_tables([SCHEMA.empty_table(), *map(pq.read_table, self._files())])

    def _write(self, table: pa.Table, path: Path) -> None:
        with aside(path) as partial:
            pq.write_table(table.cast(self._schema), partial)


def _read(table: pa.Table) -> pa.Table:
    """Rows of recordings that could be read."""
    return table.filter(pc.is_null(table["error"]))


def _metadata(file: Path) -> dict[bytes, bytes] | None:
    """What a table says of itself."""
    try:
        return pq.read_schema(file).metadata
    except pa.ArrowInvalid:
        raise ScanError(f"{file} is no parquet file; name another --out or remove it") from None
