"""Score pruning with the weights tuned (LeOPArd's own recipe), for the stock Keyword Transformer: learned, kept, found.

Kept are the thresholds, the centres, their trajectory, and what tuning added to the weights, in half precision: of
use to whoever has the published file, and to nobody else. Knows one safetensors file, and nothing of audio.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models import pruning
from models.aside import aside
from models.kwt_weights import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from models.kwt import KWT, Judge

TUNED: Final = Path(__file__).parent / "weights" / "kwt1_pruned.safetensors"
"""Of the published KWT-1, tuned on all training clips of Speech Commands that are audio."""
STEPS: Final = 800
PRICE: Final = 0.06
"""Nats per share of surviving scores, until `ENOUGH` are gone; the rest of the steps recovers accuracy."""
ENOUGH: Final = 0.57
"""Smooth count; it takes scores up to 0.38 below their threshold for survivors, so fewer do in truth."""
RATES: Final = (0.02, 1e-4)
FINAL: Final = 0.05
EVERY: Final = 10
"""Steps between two points of the trajectory."""


@dataclass(frozen=True)
class Tuned:
    """A network that was tuned to do with few scores.

    thresholds: (layers, heads); centres: (layers, heads, D); trajectory: (n, layers, heads), thresholds after every
    `EVERY` steps.
    """

    model: Judge
    thresholds: Tensor
    centres: Tensor
    trajectory: Tensor


def tune(model: KWT, clips: Tensor, *, steps: int = STEPS, tell: Callable[[str], None] = print) -> Tuned:
    """Learn thresholds and weights together on embedded clips (n, N, C); `tell` hears how it goes."""
    torch.manual_seed(0)
    trajectory, shares = [], []
    steered = pruning.learn(model, clips, steps=steps, price=PRICE, rates=RATES, final=FINAL, enough=ENOUGH)
    for step, learned in enumerate(steered, start=1):
        shares.append(learned.survived)
        if step % EVERY == 0:
            trajectory.append(learned.thresholds)
            tell(f"step {step}: {sum(shares[-EVERY:]) / EVERY:.3f} of the scores survive, smoothly counted")
    return Tuned(learned.model, learned.thresholds, learned.centres, torch.stack(trajectory))


def save(stock: KWT, tuned: Tuned, path: Path) -> None:
    """Write what tuning has found, beside the network that it began with."""
    before = stock.state_dict()
    tensors = {name: (value - before[name]).half() for name, value in tuned.model.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if value.any()}
    kept = {"thresholds": tuned.thresholds, "centres": tuned.centres, "trajectory": tuned.trajectory}
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as partial:
        save_file(tensors | kept, partial, {"stock": _name(stock)})


def load(stock: KWT, path: Path) -> Tuned | None:
    """What was found for this network; None where there is no such file, or it is of another network's."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if header["stock"] != _name(stock):
        return None
    model = copy.deepcopy(stock)
    model.load_state_dict({name: value + tensors.get(name, 0.0) for name, value in stock.state_dict().items()})
    return Tuned(model, tensors["thresholds"], tensors["centres"], tensors["trajectory"])


def _name(stock: KWT) -> str:
    return fingerprint(stock.config, stock.weights())
