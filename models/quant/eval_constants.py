"""Constants that eval mode computes once from the parameters, and when they are computed again.

A module that has such constants derives from `Constants`, computes them in `compute_constants` and reads them after
`ensure_constants`. They are plain attributes, neither parameters nor buffers: a copy, an average or a distributed run
has the same parameters and buffers whether they exist or not. They are computed again when a tensor that they come from
was written to (torch counts that, but not writes through `.data`), after `train()`/`eval()`, after a state dict was
loaded, and after a move between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from subbyte.errors import QuantizationError
from subbyte.models.quant.primitives import EXPORTING, OutputShapes, is_exporting


class Constants(nn.Module):
    """Mixin: constants computed from parameters and buffers, cached between changes of these."""

    fake_quantized: bool = False
    _computed_from: tuple[tuple[Tensor, int], ...] = ()  # (tensor, how often it had been written to)

    @property
    def integer_mode(self) -> bool:
        """Whether the module computes the integer graph of eval mode, and not the fake-quantized one."""
        return not self.training and not self.fake_quantized

    @property
    def ready(self) -> bool:
        """Whether it has seen the data that its constants need."""
        return True

    def compute_constants(self) -> None:
        """Compute and store the constants; runs without gradients, outside of inference mode."""
        raise NotImplementedError

    def sources(self) -> Iterator[Tensor]:
        """The tensors that the constants are computed from."""
        yield from chain(self.parameters(), self.buffers())

    def pack_weights(self) -> None:
        """Make the packed weights that an export needs; nothing where there are none."""

    def forget_constants(self) -> None:
        """Mark the constants as out of date."""
        self._computed_from = ()

    def ensure_constants(self) -> None:
        """Compute the constants if they are out of date; raises QuantizationError inside an export."""
        tracing = is_exporting() or torch.compiler.is_exporting()
        if self._computed_from and (tracing or all(_writes(t) == count for t, count in self._computed_from)):
            return
        if tracing:
            raise QuantizationError(
                f"a quantized {type(self).__name__} has no constants yet and a tracer cannot compute them: "
                "use `with exporting(output_shapes, model):` on a model in eval mode that has seen a batch"
            )
        # Lightning validates in inference mode, whose tensors could not be used outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            self.compute_constants()
        self._computed_from = tuple((tensor, _writes(tensor)) for tensor in self.sources())

    def train(self, mode: bool = True) -> Self:
        self.forget_constants()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_constants()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.forget_constants()
        result: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return result


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to in place; one that was made in inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def named_constants(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The constant tensors that the modules of a model hold now, by their paths, as parameters are named."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Constants):
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}" if path else name, value


@contextmanager
def exporting(output_shapes: OutputShapes, model: nn.Module | None = None) -> Iterator[None]:
    """Within this context the primitives emit ONNX nodes instead of computing.

    `output_shapes` is that of subbyte.dialect.function, which needs onnx; training does without.

    With `model` (in eval mode) its constants and packed weights are made first: a tracer cannot make them, since it
    sees the parameters without their values.
    """
    if model is not None:
        refresh(model, packed=True)
    token = EXPORTING.set(output_shapes)
    try:
        yield
    finally:
        EXPORTING.reset(token)


@contextmanager
def fake_quantized(model: nn.Module) -> Iterator[None]:
    """Within this context a model in eval mode computes the fake-quantized float graph that is trained.

    Batch norms still use their running statistics. What it gives differs from the integer graph by float rounding
    alone, except where a value then falls on the other side of a rounding tie.
    """
    modules = [m for m in model.modules() if isinstance(m, Constants)]
    try:
        for module in modules:
            module.fake_quantized = True
        yield
    finally:
        for module in modules:
            del module.fake_quantized


def refresh(model: nn.Module, packed: bool = False, unused: Collection[nn.Module] = ()) -> None:
    """Compute the constants of every quantized module of a model in eval mode (and the packed weights for an export).

    Raises QuantizationError when the model is in training mode, a quantizer that is not one of `unused` has seen no
    data, or a batch norm that is part of a layer is no longer in the model: replaced, as
    `SyncBatchNorm.convert_sync_batchnorm` does, it would count twice.
    """
    inside = set(model.modules())
    for name, module in model.named_modules():
        norm = module.__dict__.get("_batch_norm")
        if norm is not None and norm not in inside:
            raise QuantizationError(
                f"'{name}' holds a batch norm that is no longer in the model; convert batch norms before quantize"
            )
        if isinstance(module, Constants):
            if module.training:
                raise QuantizationError(f"'{name}' is in training mode; call model.eval() first")
            if not module.ready and module not in unused:
                raise QuantizationError(f"layer '{name}' has seen no data; run a batch through the model first")
            module.ensure_constants()
            if packed:
                module.pack_weights()
