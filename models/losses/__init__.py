"""Losses: one function per sample each, and the `Objective` that sums and reduces them.

    Objective("ce + 0.5*kd(temperature=4)")(Outputs(logits, teacher=Outputs(guide)), Targets(label=y)).value

A file of this folder is found by itself: importing the package registers the losses of every one.
"""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.losses.composition import Summand
from subbyte.models.losses.objective import LossOutput, Objective, Reduction
from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import get_loss, list_losses, loss

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "LossOutput",
    "Objective",
    "Outputs",
    "Reduction",
    "Summand",
    "Targets",
    "get_loss",
    "list_losses",
    "loss",
]
