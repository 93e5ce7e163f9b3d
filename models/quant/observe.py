"""Looking at the integers that enter every quantized layer while a model runs, and at which of them matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.state import named_states


@dataclass(frozen=True, eq=False)
class Observation:
    """One call of an activation quantizer: its layer's module path, what came in (float32), and what came out.

    `caller` is the path of the module whose forward made the call: the layer, or one around it that quantizes earlier.
    """

    layer: str
    caller: str
    values: Tensor
    codes: Tensor
    inverse_step: Tensor | None  # None for signs and for steps found at run time
    used: bool  # whether an output or a state of the model depends on the codes


@dataclass
class _Call:
    layer: str
    caller: str
    values: Tensor
    codes: Tensor
    inverse_step: Tensor | None


class _Dataflow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values through every operator: which quantizer calls each tensor depends on, by number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: MutableMapping[Tensor, frozenset[int]] = WeakIdKeyDictionary()

    def depends_on(self, values: Any) -> frozenset[int]:
        tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return frozenset().union(*(self.calls.get(tensor, frozenset()) for tensor in tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        calls = self.depends_on((args, kwargs or {}))
        if calls:
            # What an operator writes to is among its arguments, not among its results, where it has `out=`.
            for leaf in tree_leaves((result, (kwargs or {}).get("out"))):
                if isinstance(leaf, Tensor):
                    self.calls[leaf] = self.calls.get(leaf, frozenset()) | calls
        return result


def observe(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[Observation]]:
    """What `run` gives, which runs the model in eval mode, and an Observation for each quantizer call in its order."""
    calls: list[_Call] = []
    flow = _Dataflow()
    quantizers = {name: m for name, m in model.named_modules() if isinstance(m, ActivationQuantizer)}

    def watch(layer: str, quantizer: ActivationQuantizer) -> None:
        quantize = quantizer.quantize

        def watched(x: Tensor) -> tuple[Tensor, Tensor | None]:
            codes, step = quantize(x)
            number = frozenset((len(calls),))
            for made in (codes, step):
                if made is not None:
                    flow.calls[made] = flow.calls.get(made, frozenset()) | number
            inverse = getattr(quantizer, "inverse_step", None)
            calls.append(_Call(layer, running[-1], x.detach().clone(), codes.detach().clone(), inverse))
            return codes, step

        instance: dict[str, Any] = quantizer.__dict__
        instance["quantize"] = watched

    for name, quantizer in quantizers.items():
        watch(name.rpartition(".")[0], quantizer)
    running = [""]
    hooks = [hook for name, module in model.named_modules() for hook in _follow(module, name, running)]
    try:
        with flow:
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer in quantizers.values():
            quantizer.__dict__.pop("quantize", None)
    used = flow.depends_on((result, list(named_states(model).values())))
    return result, [
        Observation(call.layer, call.caller, call.values, call.codes, call.inverse_step, number in used)
        for number, call in enumerate(calls)
    ]


def _follow(module: nn.Module, name: str, running: list[str]) -> Iterator[RemovableHandle]:
    """Keep the paths of the modules whose forward runs now, the innermost last."""

    def entered(module: nn.Module, args: Any) -> None:
        running.append(name)

    def left(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    yield module.register_forward_pre_hook(entered)
    yield module.register_forward_hook(left, always_call=True)
