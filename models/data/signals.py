"""Generated signals: to forecast, or to label at every step."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from subbyte.models.data.data_set import Data, refuse_large
from subbyte.models.data.in_memory import Samples
from subbyte.models.data.register import register_data
from subbyte.models.options import Count

Array = npt.NDArray[Any]
FORMS = ("rest", "sine", "square", "sawtooth")  # what a step of a labelled signal belongs to
SEGMENT = 24  # steps of one form


@register_data(
    "signals",
    summary="generated signals, to forecast or (task=sequence-labelling) to label at every step",
    task="forecasting",
    shape=(1, "length"),
)
def signals(
    task: Literal["forecasting", "sequence-labelling"] = "forecasting",
    length: Count = 64,
    horizon: Count = 8,
    samples: Count = 1200,
) -> Data:
    """`samples` signals to train on and a quarter as many to test; the same for the same options.

    Forecasting: the sum of two sines and noise, `length` steps in, the `horizon` next ones as target. Sequence
    labelling: segments of rest, sine, square and sawtooth, with noise; the target is the form of each step.
    """
    tests = max(1, samples // 4)
    refuse_large("signals", (samples + tests) * (length + horizon))
    rng = np.random.default_rng(12)
    if task == "forecasting":
        inputs, targets = _to_forecast(rng, samples + tests, length, horizon)
        outputs, options = horizon, {"horizon": horizon}
    else:
        inputs, targets = _to_label(rng, samples + tests, length)
        outputs, options = len(FORMS), {}
    x, y = torch.from_numpy(inputs).unsqueeze(1), torch.from_numpy(targets)
    return Data(
        "signals",
        Samples(x[tests:], y[tests:]),
        Samples(x[:tests], y[:tests]),
        shape=(1, length),
        outputs=outputs,
        task=task,
        task_options=options,
        class_names=FORMS if task == "sequence-labelling" else (),
    )


def _to_forecast(rng: np.random.Generator, count: int, length: int, horizon: int) -> tuple[Array, Array]:
    """Signals float32 [count, length], and their next steps float32 [count, horizon]."""
    steps = np.arange(length + horizon)
    period = rng.uniform([[6.0], [20.0]], [[20.0], [60.0]], (2, count))[..., None]
    phase, height = rng.uniform(0, 2 * np.pi, (2, count, 1)), rng.uniform(0.4, 1.0, (2, count, 1))
    clean = (height * np.sin(2 * np.pi * steps / period + phase)).sum(0)
    values = (clean + rng.normal(0, 0.05, clean.shape)).astype(np.float32)
    return values[:, :length].copy(), values[:, length:].copy()


def _to_label(rng: np.random.Generator, count: int, length: int) -> tuple[Array, Array]:
    """Signals float32 [count, length], and the form of each step, int64 [count, length]."""
    segments = -(-length // SEGMENT) + 1
    start = rng.integers(0, SEGMENT, (count, 1))
    at = (np.arange(length) + start) // SEGMENT
    form = np.take_along_axis(rng.integers(0, len(FORMS), (count, segments)), at, 1)
    rate = np.take_along_axis(rng.uniform(1 / 12, 1 / 6, (count, segments)), at, 1)
    turn = (np.arange(length) * rate + rng.uniform(0, 1, (count, 1))) % 1.0
    waves = np.stack([np.zeros_like(turn), np.sin(2 * np.pi * turn), np.sign(0.5 - turn), 2 * turn - 1])
    clean = np.take_along_axis(waves, form[None], 0)[0]
    return (clean + rng.normal(0, 0.15, clean.shape)).astype(np.float32), form.astype(np.int64)
