"""The digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from subbyte.errors import MissingDependencyError, UsageError
from subbyte.models.data.data_set import Data
from subbyte.models.data.in_memory import ImageTensors
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data


@register_data("digits", summary="1,797 handwritten digits of 8x8, in scikit-learn")
def digits(path: Path | None = None) -> Data:
    """The digits that ship with scikit-learn: 1,437 to train on and 360 to test, a fixed split.

    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), UCI Machine Learning Repository.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "train") from error
    if path is not None:
        raise UsageError("data set 'digits' ships with scikit-learn and takes no path.")
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    pixels = torch.from_numpy(raw.images[order].astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(raw.target[order].astype(np.int64))
    normalization = Normalization(16.0, (0.3053,), (0.3761,))  # of all 1,797 images
    return Data(
        "digits",
        ImageTensors(pixels[360:], labels[360:], normalization),
        ImageTensors(pixels[:360], labels[:360], normalization),
        shape=(1, 8, 8),
        outputs=10,
        normalization=normalization,
        augment=None,
        class_names=tuple(str(digit) for digit in range(10)),
    )
