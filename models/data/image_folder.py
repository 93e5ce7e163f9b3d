"""Folders of images, one a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError, MissingDependencyError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import open_plain
from subbyte.models.data.augmentation import shift_and_flip
from subbyte.models.data.class_folders import Labelled, class_folders, files_of
from subbyte.models.data.data_set import Data
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data
from subbyte.models.data.split import TEST_SHARE
from subbyte.models.options import Share

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix; for EPS Pillow runs Ghostscript
IMAGENET = Normalization(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images and their labels, decoded when asked for: resized so that they cover `size`, and cropped to it."""

    def __init__(self, files: Sequence[Labelled], size: tuple[int, int], *, random_crop: bool) -> None:
        self.files, self.size, self.random_crop = files, size, random_crop
        self.targets = torch.tensor([label for _, label in files])

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


class ImageFolder(ImageFiles):
    """Images below `folder`/<class>/."""

    def __init__(self, folder: Path, class_names: Sequence[str], size: tuple[int, int], *, random_crop: bool) -> None:
        super().__init__(files_of(folder, class_names, IMAGE_SUFFIXES), size, random_crop=random_crop)


@register_data(
    "imagefolder",
    summary="your own images: PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg, or PATH/<class>/*.jpg",
    shape=(3, "size", "size"),
)
def imagefolder(path: Path, size: int | Sequence[int] = 224, test_share: Share = TEST_SHARE) -> Data:
    """RGB images from `path`/train and `path`/test with one folder a class, cropped to `size`; needs Pillow.

    Without these two, the classes are folders of `path`, and a share of the files is held out by the SHA-256 of their
    names.
    """
    try:
        import PIL  # noqa: F401  (a missing decoder is found here, not in the middle of training)
    except ImportError as error:
        raise MissingDependencyError("pillow", "train") from error
    names, trained, tested = class_folders(path, IMAGE_SUFFIXES, test_share)
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise UsageError(f"data set 'imagefolder': option 'size' is {size}, expected a size or height and width.")
    shape = (sizes[0], sizes[1])
    return Data(
        "imagefolder",
        ImageFiles(trained, shape, random_crop=True),
        ImageFiles(tested, shape, random_crop=False),
        shape=(3, *shape),
        outputs=len(names),
        normalization=IMAGENET,
        augment=shift_and_flip(0),
        class_names=names,
    )
