"""Calibrators: which step a quantizer gets, from the values that it is to quantize. A file of this folder is found by
itself."""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.post.calibrators.register import Calibrator, calibrator, get_calibrator, list_calibrators

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["Calibrator", "calibrator", "get_calibrator", "list_calibrators"]
