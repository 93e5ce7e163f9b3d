"""Post-training quantization: steps from calibration data, without training, and what corrects rounding afterwards."""

from subbyte.models.post.apply import post_train
from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.post.calibrators import calibrator, list_calibrators
from subbyte.models.post.quantized_checkpoint import PostResult, quantize
from subbyte.models.post.settings import PostTraining
from subbyte.models.post.steps import calls_of, list_steps, step

__all__ = [
    "Batches",
    "Calibration",
    "PostResult",
    "PostTraining",
    "calibrator",
    "calls_of",
    "list_calibrators",
    "list_steps",
    "post_train",
    "quantize",
    "step",
]
