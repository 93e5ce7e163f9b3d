"""The input of emitters beside the plan, and their output."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs, and the outputs a reference gives for them; programs for the device check themselves against them.

    Of a model with state: several runs from the initial state on, each array with an axis for them in front.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    # A float32 output may differ by relative * |golden| + absolute * max(1, its largest finite |golden|).
    relative: float = 0.0
    absolute: float = 0.0  # both 0: not by one bit
    ties: tuple[float, ...] = ()  # of each output, then state: how far a tie may move an element, 0: not at all
    engine: str = "none"  # what made the outputs
    states: tuple[Array, ...] = ()  # after the last run

    @property
    def runs(self) -> int:
        """How many runs: 1 without state."""
        return len((*self.inputs, *self.outputs)[0]) if self.states else 1

    def members(self) -> dict[str, bytes]:
        """The members of the bundle that hold them: .npy files by name."""
        sides = (("input", self.inputs), ("output", self.outputs), ("state", self.states))
        return {f"golden/{side}_{i}.npy": _npy(array) for side, arrays in sides for i, array in enumerate(arrays)}


@dataclass(frozen=True, eq=False)
class Emitted:
    """The members of a bundle that hold code and weights, and what only code generation knows."""

    members: dict[str, bytes]
    tiles: tuple[int, ...]  # of each call of the plan
    workspace_bytes: int  # the plan's, and the scratch of kernels after it
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the model by section, where a compiler could tell
    linked_ram: int | None = None  # bytes of its program on a board, where a linker could tell
    compiler: str | None = None  # what compiled the library's C and linked it, and why not another
    glibc: str | None = None  # the oldest that the library loads on, as "2.17"; None where it needs none
    notes: tuple[str, ...] = ()


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()
