"""Sounds in `.wav` files, in folders named after classes or named by a CSV list."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import open_plain
from subbyte.models.data.class_folders import Labelled, class_folders
from subbyte.models.data.columns import read_table
from subbyte.models.data.data_set import Data
from subbyte.models.data.register import register_data
from subbyte.models.data.split import TEST_SHARE, held_out
from subbyte.models.options import Positive, Share

WIDEST = 4  # bytes of a sample


class SoundFiles(Dataset[tuple[Tensor, int]]):
    """Sounds float32 [1, length] in [-1, 1), read when asked for: one channel, the mean of a file's.

    A longer file gives its middle; zeros follow a shorter one.
    """

    def __init__(self, files: Sequence[Labelled], rate: int, length: int) -> None:
        self.files, self.rate, self.length = files, rate, length
        self.targets = torch.tensor([label for _, label in files])
        for file, _ in files:  # another rate is found here, not in the middle of training
            read_wav(file, rate, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        sound = torch.zeros(1, self.length)
        samples = read_wav(file, self.rate, self.length)
        sound[0, : len(samples)] = torch.from_numpy(samples)
        return sound, label


def read_wav(file: Path, rate: int, most: int) -> npt.NDArray[np.float32]:
    """The middle `most` samples, or all, of a `.wav` file of whole numbers (PCM), float32 in [-1, 1).

    Raises DataError for another rate, a file that is cut off, or another kind of samples.
    """
    try:
        with open_plain(file) as stream, wave.open(stream, "rb") as sound:
            channels, width, found, count = sound.getparams()[:4]
            if found != rate:
                raise DataError(f"{file}: {found} samples a second, expected {rate}; resample it.")
            if not 1 <= width <= WIDEST or channels < 1 or channels * most > limits.SOUND_SAMPLES:
                raise ValueError(f"{channels} channels of {width} bytes")
            sound.setpos(max(0, (count - most) // 2))
            content = sound.readframes(min(count, most))
    except DataError:
        raise
    except Exception as error:  # the reader raises what the damage brings about
        raise DataError(f"{file}: not a .wav file of whole numbers ({one_line(error)}); write it again.") from error
    if len(content) != min(count, most) * channels * width or not content:
        raise DataError(f"{file}: {len(content)} bytes of samples, its header says {count} samples; copy it again.")
    return np.asarray(_levels(content, width).reshape(-1, channels).mean(1), np.float32)


def _levels(content: bytes, width: int) -> npt.NDArray[np.float64]:
    """Samples as shares of the largest; one byte is unsigned, more are signed, the lowest first."""
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float64) - 128) / 128
    wide = np.zeros((len(content) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return wide.view("<i4")[:, 0] / float(1 << 31)


@register_data(
    "wav",
    summary="your own sounds: PATH/train/<class>/*.wav and PATH/test/..., PATH/<class>/*.wav, or a CSV list",
    shape=(1, "samples"),
)
def wav(path: Path, rate: int = 16_000, seconds: Positive = 1.0, test_share: Share = TEST_SHARE) -> Data:
    """Sounds of `rate` samples a second, all `seconds` long: the middle of a longer one, zeros after a shorter one.

    A CSV list has the columns `file`, within its folder, `label`, and `part` (train or test) where some are to test on;
    otherwise a share of the files is held out.
    """
    length = round(rate * seconds)
    if not 0 < length <= limits.SOUND_SAMPLES:
        raise UsageError(
            f"data set 'wav': {seconds:g} s of {rate} a second are {length} samples; expected 1 or more, and "
            f"at most {limits.SOUND_SAMPLES}."
        )
    if path.suffix.lower() == ".csv":
        names, trained, tested = _listed(path, test_share)
    else:
        names, trained, tested = class_folders(path, (".wav",), test_share)
    return Data(
        "wav",
        SoundFiles(trained, rate, length),
        SoundFiles(tested, rate, length),
        shape=(1, length),
        outputs=len(names),
        class_names=names,
        preprocessing={"sound": {"rate": rate, "samples": length, "channels": "mean"}},
    )


def _listed(file: Path, share: float) -> tuple[tuple[str, ...], list[Labelled], list[Labelled]]:
    """The names of the classes, and the files of both parts, that a CSV list names."""
    table = read_table(file, ("file", "label", "part"))
    missing = [name for name in ("file", "label") if name not in table.columns]
    if missing:
        raise DataError(f"{file}: no column '{missing[0]}'; expected file, label and maybe part.")
    labels = table.texts("label")
    names = tuple(sorted(set(labels)))
    files = [(file.parent / one, names.index(label)) for one, label in zip(table.texts("file"), labels, strict=True)]
    if "part" not in table.columns:
        train, test = held_out("wav", len(files), share)
        return names, [files[index] for index in train], [files[index] for index in test]
    parts = table.texts("part")
    for row, part in enumerate(parts):
        if part not in ("train", "test"):
            raise table.refuse(row, "part", f"'{part[:40]}'", "train or test")
    trained, tested = ([one for one, of in zip(files, parts, strict=True) if of == part] for part in ("train", "test"))
    return names, trained, tested
