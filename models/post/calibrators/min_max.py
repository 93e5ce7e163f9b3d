"""Min-max: nothing is clipped."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.models.post.calibrators.register import calibrator


@calibrator("min-max", source="Jacob et al., Quantization and Training of Neural Networks, 2018, section 3.1")
def min_max(x: Tensor, low: float, high: float) -> Tensor:
    """the smallest step with which no value is clipped

    max(max x / high, min x / low) of each row. The source has a zero point, ours is 0: the steps are symmetric.
    """
    below = x.amin(dim=1) / low if low < 0 else torch.zeros_like(x[:, 0])
    return torch.maximum(x.amax(dim=1) / high, below).clamp_min(0)
