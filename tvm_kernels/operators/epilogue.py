"""The epilogue of an operator: float32 steps in the order that they are applied, then the stores.

The arithmetic is float32 in exactly the written order, with no fused multiply-add, so that torch, onnxruntime and every
kernel give the same bits (docs/numbers.md). To add a step or a store, add a class here and its code in
kernels/tir/epilogue.py; a class without its reference is refused.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from subbyte.errors import RegistrationError
from subbyte.formats.reference import binarize, pack_bits
from subbyte.tvm_kernels.operators.activations import activate
from subbyte.tvm_kernels.operators.operands import Array, Bits, Codes, Float, Float32, Storage, Tensors


def _complete(cls: type, part: str, register: list[type]) -> None:
    if getattr(getattr(cls, part), "__isabstractmethod__", False):
        raise RegistrationError(f"{cls.__name__} has no {part}, its arithmetic in NumPy; define it in {cls.__module__}")
    register.append(cls)


class Step:
    """An elementwise float32 operation on the output."""

    def __init_subclass__(cls) -> None:
        _complete(cls, "apply", STEPS)

    @property
    def depends_on_value_only(self) -> bool:
        """Whether equal values have equal results, independent of row, channel and run-time tensors."""
        return False

    @abstractmethod
    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        """The result of the step on [..., channels]; `tensors`: the run-time tensors by name."""

    def renamed(self, names: Mapping[str, str]) -> Step:
        """The step with its run-time tensor renamed."""
        return self


class Store:
    """A conversion of the result to the storage of an output."""

    storage: Storage

    def __init_subclass__(cls) -> None:
        _complete(cls, "apply", STORES)

    @abstractmethod
    def apply(self, y: Float32) -> Array:
        """float32 [..., channels] in the storage of the output."""


STEPS: list[type] = []
STORES: list[type] = []


# ---- steps ----


@dataclass(frozen=True, eq=False)
class _ByChannel:
    """A step with a value for each channel, or one for all."""

    values: Array

    @property
    def depends_on_value_only(self) -> bool:
        return self.values.size == 1


class _WithTensor:
    """A step with a run-time tensor."""

    tensor: str

    def renamed(self, names: Mapping[str, str]) -> Any:
        return replace(cast(Any, self), tensor=names.get(self.tensor, self.tensor))


@dataclass(frozen=True, eq=False)
class Scale(_ByChannel, Step):
    """y = y * values[channel]; values float32 [columns] or [1]."""

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return np.asarray(y * self.values.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Bias(_ByChannel, Step):
    """y = y + values[channel]; values float32 [columns] or [1]."""

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return np.asarray(y + self.values.astype(np.float32))


@dataclass(frozen=True)
class RowScale(_WithTensor, Step):
    """y = y * tensor[row]: the step of a per-token quantizer, a float32 run-time tensor [rows, 1]."""

    tensor: str

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return np.asarray(y * tensors[self.tensor].astype(np.float32).reshape(*y.shape[:-1], 1))


@dataclass(frozen=True)
class Combine(_WithTensor, Step):
    """y = y (add | multiply | subtract) tensor, float32 at run time, of the output's shape; `add` is a residual."""

    op: Literal["add", "multiply", "subtract"]
    tensor: str

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        other = tensors[self.tensor].astype(np.float32).reshape(y.shape)
        return np.asarray({"add": np.add, "multiply": np.multiply, "subtract": np.subtract}[self.op](y, other))


@dataclass(frozen=True)
class Activate(Step):
    """An elementwise function: relu, gelu (exact, with erf), sigmoid, tanh, silu, hardswish, hardsigmoid."""

    function: str
    depends_on_value_only = True

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return activate(self.function, y)


@dataclass(frozen=True)
class Clip(Step):
    """y = min(max(y, low), high)."""

    low: float
    high: float
    depends_on_value_only = True

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return np.asarray(np.minimum(np.maximum(y, np.float32(self.low)), np.float32(self.high)))


@dataclass(frozen=True, eq=False)
class PRelu(_ByChannel, Step):
    """y = y if y >= 0 else y * values[channel]; values float32 [columns] or [1]."""

    def apply(self, y: Float32, tensors: Tensors) -> Float32:
        return np.asarray(np.where(y >= 0, y, y * self.values.astype(np.float32)))


# ---- stores ----


@dataclass(frozen=True)
class ToFloat(Store):
    """Store y, float32."""

    storage = Float()

    def apply(self, y: Float32) -> Array:
        return y


@dataclass(frozen=True)
class ToCodes(Store):
    """Store clip(rint(y * factor), low, high) + zero_point as uint8; `divide`: rint(y / factor), as QuantizeLinear."""

    factor: float  # a float32 value: the inverse step, or with `divide` the step
    storage: Codes
    divide: bool = False

    def apply(self, y: Float32) -> Array:
        """The nearest level, ties to even; values out of range saturate, NaN to the lowest level."""
        low, high, factor = self.storage.low, self.storage.high, np.float32(self.factor)
        scaled = y / factor if self.divide else y * factor
        levels = np.where(np.isnan(scaled), low, np.clip(np.rint(scaled), low, high)).astype(np.int32)
        return np.asarray((levels + self.storage.zero_point).astype(np.uint8))


@dataclass(frozen=True, eq=False)
class ToBits(Store):
    """Store the bit y >= threshold[channel], 32 to a word; threshold float32 [columns] or [1]."""

    threshold: Array
    storage: Bits

    def apply(self, y: Float32) -> Array:
        return pack_bits(binarize(y, self.threshold))


@dataclass(frozen=True, eq=False)
class Epilogue:
    """Float32 steps in order, then one output tensor for each store."""

    steps: tuple[Step, ...] = ()
    stores: tuple[Store, ...] = (ToFloat(),)

    @property
    def stores_bits(self) -> bool:
        """Whether an output is stored as bits."""
        return any(store.storage.kind == "bits" for store in self.stores)

    def reference(self, y: Array, tensors: Tensors) -> list[Array]:
        """The steps on [..., channels], in float32 and in order; one array for each store."""
        with np.errstate(over="ignore", invalid="ignore"):
            value: Float32 = y.astype(np.float32)
            for step in self.steps:
                value = step.apply(value, tensors).astype(np.float32)
            return [store.apply(value) for store in self.stores]

    def by_value(self, values: Array) -> list[Array] | None:
        """The outputs for each of these values; None where they depend on more than the value."""
        value_only = all(step.depends_on_value_only for step in self.steps) and not self.stores_bits
        return self.reference(values, {}) if value_only else None

    def renamed(self, names: Mapping[str, str]) -> Epilogue:
        """The epilogue with its run-time tensors renamed."""
        return replace(self, steps=tuple(step.renamed(names) for step in self.steps))
