"""The delta gate: propagate a channel only when it has moved (Jelcicova & Verhelst 2022, eq. 4-6).

For y_t = W x_t along the token axis, with a threshold theta and a reference r that starts at 0::

    d = x_t - r_{t-1};  m = |d| > theta;  r_t = x_t where m else r_{t-1};  y_t = y_{t-1} + W (m * d)

so y_t = W r_t exactly, and |x_t - r_t| <= theta for ever. The reference network therefore needs no
accumulators: it multiplies the *held* values r by W. The compiled step does the same with less work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Thresholds = Mapping[str, "float | Tensor"]
"""Threshold of each gate, by the gate's name (`models.config.gate_names`)."""


def hold(
    x: Tensor, theta: float | Tensor, reference: Tensor | None = None, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hold each channel at its last propagated value until it moves by more than `theta`.

    Args:
        x: (..., N, C), N tokens in order.
        theta: threshold, at least 0.
        reference: (..., R) values last propagated before the first token, or None for zeros. R = C, but for a
            gated attention row (`window` given) the newest of them belong to the past keys, and new keys begin at 0.
        window: (N, C) bool, or None; where False the channel has left the window and is forgotten (0).

    Returns:
        The held values (..., N, C), and the reference after the last token.
    """
    held = x.new_zeros(x.shape[:-2] + x.shape[-1:])
    if reference is not None:
        known = x.shape[-1] if window is None else x.shape[-1] - x.shape[-2]
        held[..., :known] = reference[..., reference.shape[-1] - known :]
    rows = []
    for t in range(x.shape[-2]):
        value = x[..., t, :]
        held = torch.where((value - held).abs() > theta, value, held)
        if window is not None:
            held = held.where(window[t], 0.0)
        rows.append(held)
    return torch.stack(rows, dim=-2), held
