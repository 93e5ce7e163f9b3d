"""Taps: forward hooks on modules by name, which record what a loss reads of a network beside its result.

"head" is the output of module `head`, "head:input" its first argument. Without a name there is no hook.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from subbyte.errors import UnknownNameError, UsageError

INPUT = ":input"


def check_modules(network: nn.Module, names: Collection[str], who: str) -> None:
    """Raise UnknownNameError for a name that is no module of the network, with the nearest one."""
    known = {name for name, _ in network.named_modules() if name}
    for name in names:
        if name.removesuffix(INPUT) not in known:
            raise UnknownNameError(f"module of the {who}", name.removesuffix(INPUT), known)


class Taps:
    """What the named modules of one network gave in its last forward."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._recorded: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self, network: nn.Module, names: Collection[str]) -> None:
        """Record these modules; raises UnknownNameError."""
        check_modules(network, names, self.who)
        self.detach()
        for name in sorted(set(names)):
            module = network.get_submodule(name.removesuffix(INPUT))
            self._handles.append(module.register_forward_hook(self._hook(name, module)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._recorded = [], {}

    def _hook(self, name: str, attached: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            if module is not attached:  # a copy of the network has this hook too
                return
            value = (arguments[0] if arguments else None) if name.endswith(INPUT) else result
            if not isinstance(value, Tensor):
                raise UsageError(
                    f"module '{name}' of the {self.who} gives a {type(value).__name__}, expected a tensor; name a "
                    "module inside it or after it."
                )
            self._recorded[name] = value

        return record

    def read(self, name: str, views: int) -> Tensor:
        """What module `name` gave, [N, ...], or [N, V, ...] of a batch with V views of each sample."""
        if name not in self._recorded:
            raise UsageError(
                f"module '{name}' of the {self.who} did not run since the last step; attach the objective to the "
                "network that runs, and run it in front of each call."
            )
        value = self._recorded[name]
        if views == 1:
            return value
        if len(value) % views:
            raise UsageError(f"module '{name}' of the {self.who} gives {len(value)} rows, expected {views} per sample.")
        return value.reshape(-1, views, *value.shape[1:])

    def clear(self) -> None:
        """Forget what was recorded, so that no graph outlives its step."""
        self._recorded = {}
