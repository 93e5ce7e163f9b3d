"""Training with quantization in the loop: `train(...)`, its configuration `Run`, optimizers, schedules, the log."""

from subbyte.models.train.loop import TrainResult, train
from subbyte.models.train.run import Run

__all__ = ["Run", "TrainResult", "train"]
