"""Lightning, imported here alone: its torchmetrics imports matplotlib where that is installed (font_list.py)."""

from subbyte.models.train.font_list import import_matplotlib

import_matplotlib()

from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.plugins.io import CheckpointIO  # noqa: E402

__all__ = ["Callback", "CheckpointIO", "LightningModule", "MisconfigurationException", "Trainer"]
