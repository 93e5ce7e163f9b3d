"""A model is compared with a file on torch's meta device, which has shapes and no memory, before it is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from subbyte.errors import CheckpointError
from subbyte.files import limits

MOST_PARAMETERS = 1000  # beyond those of the file: a model of another kind still gets a message about its tensors


def refuse_other_shapes(
    make: Callable[[], nn.Module], example: Tensor, stored: Mapping[str, Tensor], file: Path
) -> None:
    """Raise CheckpointError unless each tensor of the float model is `stored`, in its shape, quantized or not.

    `make` makes the float model; it is stopped once it has many more parameters than the file. Raises CheckpointError
    also where an input such as `example`, on the meta device, would take more memory than `limits.RESULT_BYTES`.
    """
    with torch.device("meta"), _stopped_beyond(stored, file):
        model = make().eval()
    for name, tensor in model.state_dict().items():
        module, dot, leaf = name.rpartition(".")
        stored_as = name if name in stored else f"{module}{dot}parametrizations.{leaf}.original"
        if stored_as not in stored:
            raise CheckpointError(f"{file}: tensor '{name}' is missing; it is a checkpoint of another model.")
        if stored[stored_as].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: tensor '{stored_as}' is {list(stored[stored_as].shape)}, expected {list(tensor.shape)}; "
                "it is a checkpoint of another model."
            )
    try:
        with torch.no_grad(), _Measured(tuple(example.shape), file):
            model(example)
    except (RuntimeError, TypeError):  # a registered model that reads its data; else it fails alike on the CPU
        return


@contextmanager
def _stopped_beyond(stored: Mapping[str, Tensor], file: Path) -> Iterator[None]:
    thread = threading.get_ident()
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is None or threading.get_ident() != thread:
            return
        made += 1
        if made > MOST_PARAMETERS + 2 * len(stored):
            raise CheckpointError(
                f"{file}: it holds {len(stored)} tensors, its model over {made - 1}: it is of another model."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class _Measured(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, input_shape: tuple[int, ...], file: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.input_shape, self.file = input_shape, file

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.nbytes > limits.RESULT_BYTES:
                raise CheckpointError(
                    f"{self.file}: for an image of {list(self.input_shape)} its model makes a result of "
                    f"{result.nbytes} bytes, at most {limits.RESULT_BYTES} are accepted."
                )
        return results
