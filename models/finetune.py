"""Training with the delta gates in the loop: thresholds are learned, and weights learn to live with them.

The forward pass is exact: tensors are held as the compiled step holds them. Two gradients are made up:

* through the gate, the value's gradient passes straight on (held values stand for their inputs);
* for the threshold, m = |d| > theta is replaced by a ramp of half-width theta / 2 around theta, as LeOPArd (Li et
  al. 2022) softens its pruning threshold: a value held back is x - d (1 - m), so dr/dtheta = -d m'.

The loss adds a price on the expected number of MACs: the same ramp, averaged per gate and weighted by the MACs
that one moved channel costs. Its gradient reaches thresholds and tensors alike.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from models.config import ModelConfig, gate_names
from models.counting import causal_macs, stem_costs
from models.gates import Thresholds

SOFTNESS = 0.5
"""Half-width of the ramp, as a share of the threshold."""


@njit(nogil=True, cache=True, fastmath=True)
def _hold(x, theta, low, high, held, used):
    """Hold x (R, N, C) along N within columns low[n]..high[n]; held (R, N, C) out; used (R,) the ramp's sum."""
    rows, tokens, _ = x.shape
    soft = SOFTNESS * theta + 1e-9
    for r in range(rows):
        total = np.float32(0.0)
        for t in range(tokens):
            for c in range(low[t], high[t]):
                before = held[r, t - 1, c] if t else np.float32(0.0)
                size = abs(x[r, t, c] - before)
                held[r, t, c] = x[r, t, c] if size > theta else before
                total += min(np.float32(1.0), max(np.float32(0.0), np.float32(0.5) + (size - theta) / (2 * soft)))
        used[r] = total


@njit(nogil=True, cache=True, fastmath=True)
def _hold_back(x, theta, low, high, held, upstream, price, grad):
    """Gradient of x (R, N, C) into `grad`, and of theta, returned; `price` is the count's gradient per element."""
    rows, tokens, _ = x.shape
    soft = SOFTNESS * theta + 1e-9
    slope = np.float32(1.0) / (2 * soft)
    total = 0.0
    for r in range(rows):
        part = np.float32(0.0)
        for t in range(tokens):
            for c in range(low[t], high[t]):
                before = held[r, t - 1, c] if t else np.float32(0.0)
                d = x[r, t, c] - before
                inside = slope if abs(abs(d) - theta) < soft else np.float32(0.0)
                sign = np.float32(1.0) if d > 0 else np.float32(-1.0)
                grad[r, t, c] = upstream[r, t, c] + price * inside * sign
                part -= inside * (upstream[r, t, c] * d + price)
        total += part
    return total


class Hold(torch.autograd.Function):
    """Held values and the mean of the ramp; see the module's docstring for both gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, theta: Tensor, low: np.ndarray, high: np.ndarray) -> tuple[Tensor, Tensor]:
        """x (R, N, C), theta () -> held (R, N, C), and the expected share of moved channels ()."""
        values = x.detach().float().contiguous()
        held = torch.zeros_like(values)
        used = np.zeros(len(values), np.float32)
        level = np.float32(theta.item())
        _hold(values.numpy(), level, low, high, held.numpy(), used)
        ctx.save_for_backward(values, held)
        ctx.level, ctx.low, ctx.high, ctx.dtype = level, low, high, x.dtype
        ctx.count = len(values) * int((high - low).sum())
        return held.to(x.dtype), torch.tensor(float(used.sum()) / ctx.count)

    @staticmethod
    def backward(ctx, upstream: Tensor, price: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of x and theta."""
        values, held = ctx.saved_tensors
        grad = torch.zeros_like(values)
        each = np.float32(price.item() / ctx.count)
        up = upstream.float().contiguous()
        theta = _hold_back(values.numpy(), ctx.level, ctx.low, ctx.high, held.numpy(), up.numpy(), each, grad.numpy())
        return grad.to(ctx.dtype), torch.tensor(theta), None, None


START = 0.1
"""Threshold from which learning begins; of weights, which are small, a part of it."""


class LearnedGates(nn.Module):
    """Thresholds as parameters (log theta)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.names = config, gate_names(config)
        start = [START * (0.03 if "weights" in name else 1.0) for name in self.names]
        self.log_theta = nn.Parameter(torch.tensor(start).log())
        self.prices = dict(zip(self.names, _mac_shares(config), strict=True))

    @torch.no_grad()
    def adopt(self, thresholds: Thresholds) -> None:
        """Go on from thresholds learned before; one of 0 would never move again."""
        self.log_theta.copy_(torch.tensor([max(thresholds[name], 1e-6) for name in self.names]).log())

    def thresholds(self) -> dict[str, float]:
        """The learned operating point."""
        return dict(zip(self.names, self.log_theta.detach().exp().tolist(), strict=True))


class Holding:
    """Learned gates during one pass: `scale` multiplies every threshold; 0 is the dense network."""

    def __init__(self, gates: LearnedGates, scale: float) -> None:
        self._gates, self._scale = gates, scale
        self._shares: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Hold x (..., N, C); with `window` (N, C), only where it is true."""
        if self._scale == 0.0:
            return x
        tokens, channels = x.shape[-2:]
        low, high = np.zeros(tokens, np.int64), np.full(tokens, channels)
        if window is not None:
            low, high = window.int().argmax(1).numpy(), np.arange(1, tokens + 1) + channels - tokens
        theta = self._gates.log_theta[self._gates.names.index(name)].exp() * self._scale
        held, self._shares[name] = Hold.apply(x.reshape(-1, tokens, channels), theta, low, high)
        return held.view(x.shape)

    def macs_share(self) -> Tensor:
        """Expected MACs as a share of the causal baseline's."""
        return torch.stack([self._gates.prices[name] * share for name, share in self._shares.items()]).sum()


def _mac_shares(config: ModelConfig) -> list[float]:
    """Share of the causal baseline's MACs behind each gate, in the order of `gate_names`; they add up to 1."""
    tokens = 100 * config.pool_span
    macs = causal_macs(config, tokens)
    whole, factors = sum(macs.values()), config.factors
    thin, pairs = sum(1 / factor for factor in factors), sum(factors)
    blocks = [
        macs[group] / whole * (factor / pairs if group in ("scores", "values") else 1 / factor / thin)
        for factor in factors
        for group in ("qkv", "scores", "values", "out", "up", "down")
    ]
    readout = [part * config.channels for part in (config.heads, config.pool_span, len(config.labels))]
    stem = [int(costs.sum()) * tokens / whole for costs in stem_costs(config).values()]
    return [*stem, *blocks, *(p * tokens / whole for p in readout)]
