"""The streaming network's rows of the table of methods: what its engines leave out, measured, then all the rest.

Settings that end in "compiled" are the compiled step's: operating points, score pruning and the head gate leave work
out on the clock, and folded layers fold. What they cut includes ReLU's zeros, and their time the front end, as nothing
of the torch reference does. Hybrid pruning by blocks is the torch reference's, as in `models.methods`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from models.methods import BATCH, Row, attentions, cuts, streaming_bench
from models.network import Network
from models.offline import judge
from models.operating import method_of
from models.pruning_points import BOTH, PRUNED, with_pruning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from models.checkpoint import Checkpoint
    from models.evaluate import LabelledClips

LEOPARD = {"dense": "dense", "delta": "delta", "pruned": "leopard", "delta+pruned": "delta + leopard"}
"""Rows of operating points by what `models.operating` calls their methods."""
TAUS = (0.2, 0.5, 1.0)
"""Mean |score| under which a head of the compiled step is silent."""


def streaming_rows(network: Network, clips: LabelledClips, found: Mapping[str, Any]) -> Iterator[Row]:
    """The streaming network's part: operating points and pruning in the compiled step, then all methods in torch."""
    network.warm_up()
    learned = found.get("skwt", {})
    learned = learned if learned.get("fingerprint") == network.checkpoint.fingerprint else {}
    for point in network.points:
        yield _compiled_row(network, clips, point, LEOPARD[method_of(network.thresholds[point])], point)
    yield from _pruning_rows(network.checkpoint, clips, learned)
    bench = streaming_bench(network.checkpoint, clips, network.new_cache(1).bytes_per_row)
    for method, setting, attention in attentions(learned):
        yield bench.row(method, setting, attention)


def _pruning_rows(checkpoint: Checkpoint, clips: LabelledClips, learned: Mapping[str, Any]) -> Iterator[Row]:
    """Learned thresholds of scores, and gates of heads, alone and behind the delta gate, in the compiled step."""
    for found in learned.get("leopard", ()):
        setting = f"{found['pruned']:.0%} pruned on training clips"
        network = Network(with_pruning(checkpoint, scores=found["thresholds"], centres=found["centres"]))
        for point in (PRUNED, BOTH)[: 1 + (BOTH in network.points)]:
            yield _compiled_row(network, clips, point, LEOPARD[method_of(network.thresholds[point])], setting)
    for tau in TAUS:
        network = Network(with_pruning(checkpoint, tau=tau))
        for point in (PRUNED, BOTH)[: 1 + (BOTH in network.points)]:
            method = "hybrid" if point == PRUNED else "delta + hybrid"
            yield _compiled_row(network, clips, point, method, f"head gate, tau {tau}")


def folding_rows(checkpoint: Checkpoint, clips: LabelledClips) -> Iterator[Row]:
    """Every operating point of a folded checkpoint, in the compiled step."""
    network, factors = Network(checkpoint), ",".join(map(str, checkpoint.config.factors))
    seed = json.loads(checkpoint.metadata.get("schedule", "{}")).get("seed", "unknown")
    network.warm_up()
    for point in network.points:
        yield _compiled_row(network, clips, point, "folding", f"{factors}, seed {seed}, {point}")


def _compiled_row(network: Network, clips: LabelledClips, point: str, method: str, setting: str) -> Row:
    began = time.process_time()
    judged = [
        result
        for start in range(0, len(clips.samples), BATCH)
        for result in judge(network, clips.samples[start : start + BATCH], point=point)
    ]
    spent = time.process_time() - began
    verdicts = np.array([posteriors[-1].argmax() for posteriors, _ in judged])
    total = sum((count for _, count in judged[1:]), judged[0][1])
    seconds = sum(map(len, clips.samples)) / network.config.frontend.sample_rate
    return Row(
        network="skwt",
        method=method,
        setting=f"{setting}, compiled",
        accuracy=float((verdicts == clips.targets).mean()),
        **cuts(total.done, total.causal),
        cpu_ms_per_audio_s=1000 * spent / seconds,
        parameters=network.checkpoint.parameters,
        bytes_per_session=network.new_cache(1).bytes_per_row,
        bytes_read_per_token=total.bytes_read // total.tokens,
    )
