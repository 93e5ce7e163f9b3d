"""Models below eight bits: architectures, data, losses, quantization, training. Importing it costs torch."""

from subbyte.models.checkpoint import Checkpoint, Config, load_checkpoint, read_config, save_checkpoint
from subbyte.models.data import Data, Normalization, from_datasets, list_data, load_data
from subbyte.models.losses import Objective, list_losses
from subbyte.models.quant import all_schemes, get_scheme, quantize
from subbyte.models.tasks import get_task, list_tasks
from subbyte.models.train import Run, TrainResult, train
from subbyte.models.untrained import untrained
from subbyte.models.zoo import create, create_for, create_for_scheme, list_models, register_model

__all__ = [
    "Checkpoint",
    "Config",
    "Data",
    "Normalization",
    "Objective",
    "Run",
    "TrainResult",
    "all_schemes",
    "create",
    "create_for",
    "create_for_scheme",
    "from_datasets",
    "get_scheme",
    "get_task",
    "list_data",
    "list_losses",
    "list_models",
    "list_tasks",
    "load_checkpoint",
    "load_data",
    "quantize",
    "read_config",
    "register_model",
    "save_checkpoint",
    "train",
    "untrained",
]
