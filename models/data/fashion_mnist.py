"""Fashion-MNIST, in IDX files."""

from __future__ import annotations

from pathlib import Path

import torch

from subbyte.errors import DataError
from subbyte.models.data.augmentation import shift_and_flip
from subbyte.models.data.data_set import Data
from subbyte.models.data.idx import read_idx
from subbyte.models.data.in_memory import ImageTensors
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data

FASHION_MNIST_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
FASHION_MNIST_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801
_REINSTALL = "Reinstall it with: apt install --reinstall dataset-fashion-mnist, or download the file again."


@register_data(
    "fashion-mnist",
    summary="70,000 clothes, in Debian's dataset-fashion-mnist; or the folder of its four IDX files",
    shape=(1, 28, 28),
    needs="apt install dataset-fashion-mnist",
)
def fashion_mnist(path: Path | None = None) -> Data:
    """60,000 images to train on and 10,000 to test, from IDX files (plain or .gz) in `path` or where Debian puts them.

    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017).
    """
    places = [path] if path is not None else list(FASHION_MNIST_FOLDERS)
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        searched = ", ".join(str(place) for place in places)
        raise DataError(
            f"Fashion-MNIST was not found in {searched}. Install it with: apt install dataset-fashion-mnist, "
            "or give the folder of its four IDX files as path."
        )
    normalization = Normalization(255.0, (0.2860,), (0.3530,))  # of the 60,000 training images
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), _IDX_IMAGES, _REINSTALL)
        labels = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), _IDX_LABELS, _REINSTALL)
        if pixels.shape[1:] != (28, 28) or (labels > 9).any():
            raise DataError(
                f"{folder}: {prefix} files are not Fashion-MNIST (28x28 images, labels 0 to 9). {_REINSTALL}"
            )
        parts[part] = ImageTensors(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels), normalization)
    return Data(
        "fashion-mnist",
        parts["train"],
        parts["test"],
        shape=(1, 28, 28),
        outputs=10,
        normalization=normalization,
        augment=shift_and_flip(1),
        class_names=FASHION_MNIST_CLASSES,
    )


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: '{name}' (plain or .gz) is missing. {_REINSTALL}")
