"""Post-training steps, in the order in which they run. A file of this folder is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.post.steps.register import CHANGES, Call, Step, calls_of, get_step, list_steps, step

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["CHANGES", "Call", "Step", "calls_of", "get_step", "list_steps", "step"]
