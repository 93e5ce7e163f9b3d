"""Data sets for training and checking: samples (input, target), whose target has the form that a task says.

`load_data("digits")` comes with scikit-learn; `fashion-mnist` is read from IDX files; `imagefolder` from folders of
images, one a class. To add a data set: write a function that returns a `Data` and register it with `@register_data`.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError, MissingDependencyError, UnknownNameError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import open_plain

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Normalization:
    """How a pixel becomes a network's input: (pixel / largest - mean[channel]) / deviation[channel], in float32."""

    largest: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        divisors = (self.largest, *self.deviation)
        if not all(map(math.isfinite, (*divisors, *self.mean))) or any(value <= 0 for value in divisors):
            raise DataError(
                f"normalisation by largest {self.largest}, mean {self.mean}, deviation {self.deviation}: expected "
                "finite numbers, largest and deviation above 0."
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [..., channels, height, width] of any dtype to float32."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).reshape(-1, 1, 1)
        deviation = torch.tensor(self.deviation, dtype=torch.float32, device=pixels.device).reshape(-1, 1, 1)
        return (pixels.to(torch.float32) / self.largest - mean) / deviation


INPUT_TYPES = ("float32", "int64")  # of an input: real values, or tokens


@dataclass(frozen=True)
class Data:
    """A training set and a test set of samples (input Tensor, target), and what a model must know of them.

    Raises DataError for a set without samples or without a length, and for a shape, a number of outputs or a type of
    input that there cannot be.
    """

    name: str
    train: Dataset[tuple[Tensor, Any]]
    test: Dataset[tuple[Tensor, Any]]
    shape: tuple[int, ...]  # of one input: [C, H, W] of an image, [C, L] of a series, [T] of tokens
    outputs: int  # classes, labels, values or tokens of the vocabulary
    dtype: str = "float32"  # of an input: one of INPUT_TYPES
    task: str = "classification"  # what it is for, unless a run says another
    task_options: Mapping[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None  # None: not known
    augment: Augment | None = None  # of a batch of inputs [N, ...] in training
    class_names: tuple[str, ...] = ()  # of the outputs

    def __post_init__(self) -> None:
        _refuse_empty(self.name, self.train, self.test)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if min(self.shape, default=0) < 1 or self.outputs < 1 or self.dtype not in INPUT_TYPES:
            raise DataError(
                f"data set '{self.name}': inputs {self.dtype} {list(self.shape)} and {self.outputs} outputs, expected "
                f"sizes of at least 1, at least one output, and {' or '.join(INPUT_TYPES)}."
            )

    @property
    def classes(self) -> int:
        """The outputs, where they are classes."""
        return self.outputs

    @property
    def channels(self) -> int:
        """Channels of an image; raises DataError for another input."""
        return self._of_image()[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image; raises DataError for another input."""
        _, height, width = self._of_image()
        return height, width

    def _of_image(self) -> tuple[int, ...]:
        if len(self.shape) != 3:
            raise DataError(
                f"data set '{self.name}': inputs are {self.dtype} {list(self.shape)}, expected images [C, H, W]; "
                "take a model for such inputs, or data of images."
            )
        return self.shape

    def test_arrays(self, limit: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The first `limit` (all) test samples: inputs [N, ...] of the data's type, targets [N, ...], int64 or float32.

        Raises DataError for samples of several shapes, and for a target that is no number and no array of them.
        """
        count = len(self.test)  # type: ignore[arg-type]
        pairs = [self.test[index] for index in range(count if limit is None else min(limit, count))]
        inputs = _stacked(self.name, "inputs", [sample for sample, _ in pairs]).astype(self.dtype, copy=False)
        targets = _stacked(self.name, "targets", [target for _, target in pairs])
        return inputs, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64, copy=False)


def _stacked(name: str, what: str, values: Sequence[Any]) -> npt.NDArray[Any]:
    try:
        stacked = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(f"data set '{name}': its {what} have several shapes ({error}); give all one shape.") from error
    if stacked.dtype.kind not in "biuf":
        raise DataError(f"data set '{name}': its {what} are {stacked.dtype}, expected numbers.")
    return stacked


class ImageTensors(Dataset[tuple[Tensor, int]]):
    """Images held in memory as uint8 [N, C, H, W] and labels int64 [N]; gives single samples, or whole batches fast."""

    def __init__(self, pixels: Tensor, labels: Tensor, normalization: Normalization) -> None:
        if len(pixels) != len(labels):
            raise DataError(f"there are {len(pixels)} images but {len(labels)} labels.")
        self.pixels, self.labels, self.normalization = pixels, labels.to(torch.int64), normalization

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalization(self.pixels[index]), int(self.labels[index])

    def batch(self, indices: Sequence[int] | slice) -> tuple[Tensor, Tensor]:
        """Images float32 [n, C, H, W] and labels int64 [n]."""
        return self.normalization(self.pixels[indices]), self.labels[indices]


# ---- the register ----

_DATA: dict[str, tuple[Callable[..., Data], str]] = {}


def register_data(name: str, *, summary: str) -> Callable[[Callable[..., Data]], Callable[..., Data]]:
    """Register the decorated function, which takes `path` and options, as the data set `name`."""
    if name in _DATA:
        raise UsageError(f"data set '{name}' is registered already; choose another name.")

    def register(load: Callable[..., Data]) -> Callable[..., Data]:
        _DATA[name] = (load, summary)
        return load

    return register


def list_data() -> dict[str, str]:
    """Every data set by name, with one line about it."""
    return {name: _DATA[name][1] for name in sorted(_DATA)}


def load_data(name: str, path: str | Path | None = None, **options: Any) -> Data:
    """Load the data set `name`, from `path` where it needs one.

    Raises `UnknownNameError` for the name and `DataError` for files that are missing or damaged.
    """
    if name not in _DATA:
        raise UnknownNameError("data set", name, _DATA)
    return _DATA[name][0](path=None if path is None else Path(path), **options)


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    classes: int | None = None,
    name: str = "custom",
    normalization: Normalization | None = None,
    augment: Augment | None = None,
) -> Data:
    """`Data` of any two torch Datasets of (float32 image [C, H, W], label).

    `classes` defaults to 1 + the largest training label. Raises `DataError` for samples that are not that, or none.
    """
    _refuse_empty(name, train, test)
    try:
        image, _ = train[0]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"data set '{name}': train[0] must be (image, label), but reading it failed: {error}"
        ) from error
    if not isinstance(image, Tensor) or image.dim() != 3 or image.dtype != torch.float32:
        got = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(
            f"data set '{name}': images must be float32 tensors [channels, height, width], got {got}. Give others axes "
            "of size 1, which the forward takes out, or train `quantize(model, scheme)` in a loop of your own."
        )
    if classes is None:
        classes = 1 + max(int(train[index][1]) for index in range(len(train)))  # type: ignore[arg-type]
    return Data(name, train, test, tuple(image.shape), classes, normalization=normalization, augment=augment)


def _refuse_empty(name: str, train: Dataset[Any], test: Dataset[Any]) -> None:
    for part, samples in (("training", train), ("test", test)):
        try:
            count = len(samples)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(f"data set '{name}': the {part} set has no length; give a Dataset that has one.") from error
        if count == 0:
            raise DataError(f"data set '{name}': the {part} set is empty; give it at least one sample.")


# ---- augmentation of whole batches ----


def shift_and_flip(pixels: int, flip: bool = True) -> Augment:
    """Move each image by up to `pixels` in each direction (edges repeat) and mirror half of them."""

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        shifts = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)
        rows = (torch.arange(height) + shifts[0]).clamp_(0, height - 1)
        columns = (torch.arange(width) + shifts[1]).clamp_(0, width - 1)
        if flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        places = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).reshape(count, 1, -1).to(images.device)
        moved = images.flatten(2).gather(2, places.expand(-1, channels, -1))
        return moved.reshape(images.shape)

    return augment


# ---- digits ----


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


# ---- Fashion-MNIST, in IDX files ----

FASHION_MNIST_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
FASHION_MNIST_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801
_IDX_LARGEST = 1 << 30  # bytes; no file of this kind is larger


@register_data("fashion-mnist", summary="70,000 clothes of 28x28; Debian package dataset-fashion-mnist, or a path")
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
        pixels = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), _IDX_IMAGES)
        labels = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), _IDX_LABELS)
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


_REINSTALL = "Reinstall it with: apt install --reinstall dataset-fashion-mnist, or download the file again."


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: '{name}' (plain or .gz) is missing. {_REINSTALL}")


def read_idx(file: Path, magic: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped, whose first four bytes must be `magic`.

    Raises `DataError` for another magic number, or a length other than the header's.
    """
    try:
        with open_plain(file) as plain, gzip.open(plain) if file.suffix == ".gz" else plain as stream:
            content = stream.read(_IDX_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}). {_REINSTALL}") from error
    axes = magic & 0xFF
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{file}: {len(content)} bytes are too few for an IDX header of {header}. {_REINSTALL}")
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        raise DataError(f"{file}: magic number is 0x{found:08x}, expected 0x{magic:08x}. {_REINSTALL}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{file}: {len(content)} bytes, but the header's shape {shape} needs {expected}. {_REINSTALL}")
    values: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8, offset=header)
    try:
        shaped: npt.NDArray[np.uint8] = values.reshape(shape).copy()
    except ValueError as error:  # no elements, but sizes beside the 0 that no array can have
        raise DataError(f"{file}: the header's shape {shape} is none of an array. {_REINSTALL}") from error
    return shaped


# ---- folders of images ----

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix; for EPS Pillow runs Ghostscript
IMAGENET = Normalization(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images below `folder`/<class>/, decoded when asked for: resized so that they cover `size`, and cropped to it."""

    def __init__(self, folder: Path, class_names: Sequence[str], size: tuple[int, int], *, random_crop: bool) -> None:
        self.size, self.random_crop = size, random_crop
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(class_names):
            found = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            self.files += [(file, label) for file in found]
        if not self.files:
            raise DataError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in folders named after classes.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file, label = self.files[index]
        height, width = self.size
        room = float(torch.empty(()).uniform_(1.0, 1.4)) if self.random_crop else 1.15
        try:
            with open_plain(file) as stream, Image.open(stream, formats=IMAGE_FORMATS) as opened:
                factor = room * max(height / opened.height, width / opened.width)
                covering = (max(width, round(opened.width * factor)), max(height, round(opened.height * factor)))
                for size, what in ((opened.size, "it has"), (covering, "to cover the crop it needs")):
                    if math.prod(size) > limits.IMAGE_PIXELS:
                        raise ValueError(
                            f"{what} {size[0]}x{size[1]} pixels, at most {limits.IMAGE_PIXELS} are decoded"
                        )
                image = opened.convert("RGB").resize(covering)
        except Exception as error:  # a decoder raises whatever it likes on a damaged file
            raise DataError(f"{file}: cannot be decoded ({one_line(error)}); remove the file or replace it.") from error
        spare = (image.height - height, image.width - width)
        top, left = (int(torch.randint(n + 1, ())) if self.random_crop else n // 2 for n in spare)
        pixels = np.asarray(image, np.uint8)[top : top + height, left : left + width]
        return IMAGENET(torch.from_numpy(pixels.copy()).permute(2, 0, 1)), label


@register_data("imagefolder", summary="your own images: PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg")
def imagefolder(path: Path | None = None, size: int | tuple[int, int] = 224) -> Data:
    """RGB images from `path`/train and `path`/test with one folder a class, cropped to `size`; needs Pillow."""
    try:
        import PIL  # noqa: F401  (a missing decoder is found here, not in the middle of training)
    except ImportError as error:
        raise MissingDependencyError("pillow", "train") from error
    if path is None:
        raise UsageError("data set 'imagefolder' needs a path with the folders train/ and test/.")
    for part in ("train", "test"):
        if not (path / part).is_dir():
            raise DataError(f"{path}: there is no folder '{part}'; expected {path}/{part}/<class>/<image>.")
    names = tuple(sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir()))
    unseen = sorted(f.name for f in (path / "test").iterdir() if f.is_dir() and f.name not in names)
    if unseen:
        raise DataError(f"{path}/test: class '{unseen[0]}' has no folder in {path}/train.")
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return Data(
        "imagefolder",
        ImageFolder(path / "train", names, shape, random_crop=True),
        ImageFolder(path / "test", names, shape, random_crop=False),
        shape=(3, *shape),
        outputs=len(names),
        normalization=IMAGENET,
        augment=shift_and_flip(0),
        class_names=names,
    )
