"""A convolutional network that hears a second of sound whole, its future included: it teaches, and is never served.

Convolutions over time and bands halve time once and the bands three times, and residual blocks (He et al. 2016) follow.
What is left of the bands becomes channels, and residual blocks of depthwise convolutions (as in MatchboxNet, Majumdar
and Ginsburg 2020) look along time, farther from block to block. Two poolings of that are what the head reads: the
maximum, and a mean for each quarter of the channels, weighted by where that quarter listens.

Letters: B clips, T frames, M bands, W channels, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.aside import aside
from models.config import ConfigError, ModelConfig
from models.data import CLIP_FRAMES, DataError

FORMAT = "deltaspot-clip-cnn-1"
WINDOW = CLIP_FRAMES + 4
"""Frames that are heard at once: a clip, and what training streams lay between two."""
PLANES = (32, 48, 64)
"""Channels of the convolutions that halve the bands."""
WIDTH = 128
GROUPS = 4
DILATIONS = (1, 2, 2, 4)


class Plane(nn.Module):
    """Two convolutions over bands and time (B, C, M, T), the first with holes in time, around which x passes."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        reach = (1, dilation)
        self.first = nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, M, T) -> the same."""
        change = self.second(F.relu(self.first_norm(self.first(x))))
        return F.relu(x + self.second_norm(change))


class Line(nn.Module):
    """A depthwise convolution along time (B, W, T) and a small feed-forward, around which x passes."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            channels, channels, 5, padding=2 * dilation, dilation=dilation, groups=channels, bias=False
        )
        self.depthwise_norm = nn.BatchNorm1d(channels)
        self.up = nn.Conv1d(channels, 2 * channels, 1)
        self.down = nn.Conv1d(2 * channels, channels, 1, bias=False)
        self.down_norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, T) -> the same."""
        change = self.up(self.depthwise_norm(self.depthwise(x)))
        return x + self.down_norm(self.down(F.relu(change)))


class ClipCNN(nn.Module):
    """Network input of a second, (B, WINDOW, M), to logits (B, K)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        narrow, middle, wide = PLANES
        self.norm = nn.BatchNorm2d(1)
        self.stem = nn.Sequential(
            *_halving(1, narrow, 5, (2, 2)), *_halving(narrow, middle, 3, (2, 1)), *_halving(middle, wide, 3, (2, 1))
        )
        self.planes = nn.Sequential(Plane(wide, 1), Plane(wide, 2))
        height = -(-config.frontend.bands // 8)
        self.fold = nn.Sequential(nn.Conv2d(wide, WIDTH, (height, 1), bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.lines = nn.Sequential(*(Line(WIDTH, dilation) for dilation in DILATIONS))
        self.where = nn.Conv1d(WIDTH, GROUPS, 1)
        self.head = nn.Linear(2 * WIDTH, len(config.labels))

    def hear(self, frames: Tensor) -> Tensor:
        """Network input (B, WINDOW, M) -> what the head reads (B, 2 W)."""
        x = frames.transpose(1, 2)[:, None].contiguous(memory_format=torch.channels_last)
        x = self.lines(self.fold(self.planes(self.stem(self.norm(x))))[:, :, 0])
        attention = self.where(x).softmax(-1)
        means = torch.einsum("bgt,bgwt->bgw", attention, x.unflatten(1, (GROUPS, -1))).flatten(1)
        return torch.cat((means, x.amax(-1)), 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Network input (B, WINDOW, M) -> logits (B, K)."""
        return self.head(self.hear(frames))


def _halving(channels: int, out: int, size: int, stride: tuple[int, int]) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU()


def save_clip_cnn(network: ClipCNN, config: ModelConfig, path: Path, made: Mapping[str, str]) -> None:
    """Write a network with the labels and front end it was trained for, and how it was made."""
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict()), **made}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with aside(path) as partial:
        save_file(tensors, partial, metadata)


def load_clip_cnn(path: Path) -> tuple[ClipCNN, ModelConfig]:
    """Inverse of `save_clip_cnn`, ready to judge.

    Raises:
        DataError: for a file that is none, or broken.
    """
    try:
        with safe_open(path, "pt") as file:
            config = ModelConfig.from_dict(json.loads(file.metadata()["config"]))
            network = ClipCNN(config)
            network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
    except (OSError, SafetensorError, KeyError, TypeError, ConfigError, RuntimeError) as error:
        raise DataError(f"{path} holds no network of `deltaspot train --stage clip`: {error}") from error
    return network.eval().requires_grad_(requires_grad=False), config
