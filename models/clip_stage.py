"""A stage before the others: a convolutional network learns to judge single seconds, in order to teach.

It hears each second whole, in noise and beside nobody, asked as the streaming network is (`models.train`). As a tutor
(`models.tutor`) it then judges every word of a student's streams as the student hears it: a teacher that sees what its
student sees, for as long as it learns (Beyer et al. 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.clip_cnn import WIDTH, WINDOW, ClipCNN, save_clip_cnn
from models.compose import Batch
from models.config import ModelConfig
from models.features import network_input
from models.naming import Naming
from models.precision import quick
from models.recipe import Recipe
from models.train_state import Schedule, State, how_made
from models.validation import Validation

TUTOR = "clip.safetensors"
"""What a run leaves in its folder, in the place of a checkpoint."""
DROPPED = 0.2
"""Share of what the head reads that is left out at random while it learns."""
BATCH = 128


class Clip(nn.Module):
    """Cross-entropy over single seconds, and over their names."""

    stage = "clip"
    pace = 1.0
    SCHEDULE: ClassVar[Schedule] = Schedule(
        steps=11_000, streams=128, shards=1, warmup=300, label_smoothing=0.03, clip_norm=3.0
    )
    RECIPE: ClassVar[Recipe] = Recipe(
        segments=1, trust=0.4, shares=(0.68, 0.24, 0.05, 0.03), background=0.1, running=0.04,
        gain_db=(-15.0, 6.0), noisy=0.7, snr_db=(0.0, 35.0), bursts=0.15, babble=0.1, band_mask=8, time_mask=10,
    )  # fmt: skip

    def __init__(self, config: ModelConfig, recipe: Recipe) -> None:
        super().__init__()
        self.naming = Naming(2 * WIDTH, config, recipe)

    def network(self, config: ModelConfig) -> ClipCNN:
        """What is trained."""
        return ClipCNN(config)

    def forward(
        self, model: ClipCNN, batch: Batch, schedule: Schedule, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch of streams that are one second long, and figures for the log."""
        with quick():
            heard = model.hear(batch.frames[:, :WINDOW])
            heard = heard * (torch.rand(heard.shape, generator=generator) >= DROPPED) / (1 - DROPPED)
            logits, names = model.head(heard), self.naming(heard)
        smoothing = schedule.label_smoothing
        task = F.cross_entropy(logits.float(), batch.beliefs[:, 0], label_smoothing=smoothing)
        named = F.cross_entropy(names.float(), batch.names[:, 0], label_smoothing=smoothing)
        return task + schedule.naming * named, {"loss": task.item(), "names": named.item()}

    def follow(self, figures: dict[str, float], progress: float) -> None:
        """Nothing is steered."""

    def keep(self, state: State, validation: Validation, out: Path) -> dict[str, dict[str, Any]]:
        """Write the averaged weights, and judge them."""
        network = cast(ClipCNN, state.average.eval())
        save_clip_cnn(network, state.config, out / TUTOR, how_made(state))
        clips, noise = (verdicts(network, seconds) for seconds in (validation.clips, validation.noise))
        return {"whole": validation.figures(clips, noise)}


@torch.inference_mode()
def verdicts(network: ClipCNN, clips: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Label of each clip, pixels (R, 98, M) -> (R,)."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(clips), BATCH):
        missing = ((0, 0), (0, WINDOW - clips.shape[1]), (0, 0))
        frames = network_input(np.pad(clips[start : start + BATCH], missing).astype(np.float32))
        with quick():
            found.append(network(torch.from_numpy(frames)).argmax(-1).numpy())
    return np.concatenate(found)
