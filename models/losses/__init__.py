"""Losses with one signature: `create_loss("kd", temperature=4.0)(Outputs(...), Targets(...)).value`."""

from subbyte.models.losses import classification, distillation  # importing a file registers what it defines
from subbyte.models.losses.loss import (
    Loss,
    LossEntry,
    LossOutput,
    Outputs,
    Reduction,
    Targets,
    create_loss,
    get_loss,
    list_losses,
    register_loss,
)

__all__ = [
    "Loss",
    "LossEntry",
    "LossOutput",
    "Outputs",
    "Reduction",
    "Targets",
    "classification",
    "create_loss",
    "distillation",
    "get_loss",
    "list_losses",
    "register_loss",
]
