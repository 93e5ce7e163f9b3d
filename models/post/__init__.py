"""Post-training quantization: steps from calibration data, without training."""

from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.post.calibrators import calibrator, list_calibrators

__all__ = ["Batches", "Calibration", "calibrator", "list_calibrators"]
