"""Half precision in training, where this processor multiplies it itself."""

from __future__ import annotations

from typing import Any

import torch

UNITS: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
"""What this processor can do; nothing that an older torch knows of."""
HALF_PRECISION = any(UNITS.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
"""Whether this processor multiplies bfloat16 itself; where it does not, it is three times slower than float32."""


def quick() -> torch.autocast:
    """A region whose products are in bfloat16, where that is quicker."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HALF_PRECISION)
