"""State dicts of earlier versions of subbyte, brought into the form of this one while they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Upgraded(nn.Module):
    """Mixin of a module whose parameters or buffers had other names or meanings before."""

    def upgrade(self, state: dict[str, Any], prefix: str) -> None:
        """Rename and fill in, in place, what `state` holds under `prefix`; nothing where it is of this version."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.upgrade(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def upgraded(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `model`, of this or of an earlier version, as this version would save it."""
    copied = dict(state)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Upgraded):
            module.upgrade(copied, f"{path}." if path else "")
    return copied
