"""Series in `.ts` files, the text format of the archive for time series classification (Bagnall et al., 2018).

Comments start with `#` or `%`, settings with `@`. After `@data` each line is a sample: channels with `:` between
them, each of values with `,` between them, and the label, or the value to predict, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subbyte.errors import DataError
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.models.data.data_set import Data, refuse_large
from subbyte.models.data.in_memory import Samples
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data

Series = npt.NDArray[np.float32]  # [channels, length]


@dataclass(frozen=True)
class SeriesFile:
    """What a file holds: series [C, L], of several lengths maybe, and the label of each."""

    series: list[Series]
    labels: list[str]
    class_names: tuple[str, ...]


def read_ts(file: Path) -> SeriesFile:
    """Read a `.ts` file; raises DataError with the line for what is damaged, missing or of another kind."""
    try:
        lines = read_plain(file, limits.SERIES_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy it again.") from error
    series: list[Series] = []
    labels: list[str] = []
    classes: tuple[str, ...] | None = None
    inside = False
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line[0] in "#%":
            continue
        where = f"{file}:{number}"
        if not inside:
            setting, *values = line.split()
            inside = setting.lower() == "@data"
            classes = _setting(where, setting.lower(), values, classes)
            continue
        if classes is None:
            raise DataError(f"{where}: data without '@classLabel true NAME...' before it; only classes are read.")
        one, label = _sample(where, line, classes, len(series[0]) if series else None)
        series.append(one)
        labels.append(label)
    if not series or classes is None:
        raise DataError(f"{file}: no samples after '@data'; expected a .ts file of series with classes.")
    return SeriesFile(series, labels, classes)


def _setting(where: str, setting: str, values: list[str], classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The classes, after this setting; raises DataError for a kind of file that is not read."""
    if not setting.startswith("@"):
        raise DataError(f"{where}: expected a setting such as @classLabel before @data, got '{setting[:40]}'.")
    wanted = {"@timestamps": "false", "@missing": "false", "@targetlabel": "false"}.get(setting)
    if wanted and [value.lower() for value in values] != [wanted]:
        raise DataError(f"{where}: {setting} is '{' '.join(values)[:40]}', expected {wanted}: no other is read.")
    if setting != "@classlabel":
        return classes
    if not values or values[0].lower() != "true" or len(set(values[1:])) < 2:
        raise DataError(f"{where}: @classLabel is '{' '.join(values)[:40]}', expected true and two or more names.")
    return tuple(values[1:])


def _sample(where: str, line: str, classes: Sequence[str], channels: int | None) -> tuple[Series, str]:
    *parts, label = line.split(":")
    label = label.strip()
    if not parts or label not in classes:
        raise DataError(f"{where}: ends with '{label[:40]}', expected one of the classes {', '.join(classes)}.")
    if channels is not None and len(parts) != channels:
        raise DataError(f"{where}: {len(parts)} channels, those before have {channels}.")
    try:
        rows = [np.array(part.split(","), np.float32) for part in parts]
    except ValueError as error:
        raise DataError(f"{where}: a value is not a number ({error}); missing values are not read.") from error
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise DataError(f"{where}: channels of {min(lengths)} and of {max(lengths)} values, expected one length.")
    series = np.stack(rows)
    if not np.isfinite(series).all():
        channel, place = np.argwhere(~np.isfinite(series))[0]
        raise DataError(f"{where}: value {place} of channel {channel} is {series[channel, place]}, expected a number.")
    return series, label


# ---- data of two files ----


def series_data(name: str, train: Path, test: Path) -> Data:
    """Classification of the series of two files, each channel normalised by the training series.

    All are as long as the longest: zeros, which are the mean of each channel, follow a shorter one.
    """
    first, second = read_ts(train), read_ts(test)
    if (first.class_names, len(first.series[0])) != (second.class_names, len(second.series[0])):
        raise DataError(
            f"{test}: {len(second.series[0])} channels and classes {', '.join(second.class_names)}, expected "
            f"{len(first.series[0])} and {', '.join(first.class_names)}, as in {train.name}."
        )
    values = np.concatenate(first.series, 1).astype(np.float64)
    deviation = values.std(1)
    normalization = Normalization(
        1.0, tuple(values.mean(1).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()), axes=1
    )
    lengths = [one.shape[1] for part in (first, second) for one in part.series]
    refuse_large(name, sum(map(len, (first.series, second.series))) * len(values) * max(lengths))
    return Data(
        name,
        _padded(first, normalization, max(lengths)),
        _padded(second, normalization, max(lengths)),
        shape=(len(values), max(lengths)),
        outputs=len(first.class_names),
        normalization=normalization,
        class_names=first.class_names,
    )


def _padded(part: SeriesFile, normalization: Normalization, length: int) -> Samples:
    inputs = torch.zeros(len(part.series), len(part.series[0]), length)
    for row, one in zip(inputs, part.series, strict=True):
        row[:, : one.shape[1]] = normalization(torch.from_numpy(one))
    return Samples(inputs, _numbers(part))


def _numbers(part: SeriesFile) -> Tensor:
    return torch.tensor([part.class_names.index(label) for label in part.labels])


@register_data(
    "ts", summary="your own series: a folder of NAME_TRAIN.ts and NAME_TEST.ts", shape=("channels", "length")
)
def ts(path: Path) -> Data:
    """Series of the two `.ts` files of a folder."""
    found = {part: sorted(path.glob(f"*_{part}.ts")) for part in ("TRAIN", "TEST")}
    for part, files in found.items():
        if len(files) != 1:
            raise DataError(f"{path}: {len(files)} files *_{part}.ts, expected one; give the folder of one data set.")
    return series_data("ts", found["TRAIN"][0], found["TEST"][0])
