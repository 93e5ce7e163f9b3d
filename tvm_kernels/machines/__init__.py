"""The machines that we compile for: a file for each architecture; targets and boards in folders of their own.

Importing this package imports all of them: they register themselves.
"""

from importlib import import_module
from pkgutil import walk_packages

from subbyte.tvm_kernels.machines.register import all_targets, get_target, register_target
from subbyte.tvm_kernels.machines.target import Target

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["Target", "all_targets", "get_target", "register_target"]
