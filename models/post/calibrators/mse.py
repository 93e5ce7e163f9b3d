"""MSE: the step of least squared error."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from subbyte.models.options import Within
from subbyte.models.post.calibrators.register import calibrator

Candidates = Annotated[int, Within(2, closed="[)")]
_SMALLEST_SHARE = 2.0**-12  # of the largest |x|: an outlier 4096 times as large as the rest is clipped to the rest


def squared_error(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """The sum of (quantized x - x)^2 over each row of x [rows, elements], with steps [rows]."""
    wide = step.unsqueeze(1)
    inverse = torch.where(wide > 0, 1 / wide, 0)
    return (torch.clamp(torch.round(x * inverse), low, high) * wide - x).square().sum(dim=1)


def _best(x: Tensor, steps: list[Tensor], low: float, high: float) -> Tensor:
    """Of steps [rows] the one of least error, for each row."""
    errors = torch.stack([squared_error(x, step, low, high) for step in steps])
    return torch.stack(steps).gather(0, errors.argmin(dim=0, keepdim=True))[0]


@calibrator("mse", source="Sung et al., Resiliency of Deep Neural Networks, 2015, section 3 (L2 error)")
def mse(x: Tensor, low: float, high: float, candidates: Candidates = 48) -> Tensor:
    """the step of least squared error

    First `candidates` steps are tried that put the largest code at 2^-12 to 1 of the largest |x|, at equal ratios; then
    as many between the neighbours of the best, at equal distances. The source says no way to search.
    """
    largest = x.abs().amax(dim=1)
    shares = torch.logspace(0, 1, candidates, base=_SMALLEST_SHARE, dtype=x.dtype, device=x.device)
    best = _best(x, [largest * (share / high) for share in shares], low, high)
    ratio = _SMALLEST_SHARE ** (1 / (candidates - 1))
    fine = torch.linspace(ratio, 1 / ratio, candidates, dtype=x.dtype, device=x.device)
    return _best(x, [best, *(best * share for share in fine)], low, high)
