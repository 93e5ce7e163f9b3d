"""Series that come with another package: its files are read, the package is not imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from subbyte.errors import DataError, MissingDependencyError
from subbyte.models.data.data_set import Data
from subbyte.models.data.register import register_data
from subbyte.models.data.ts_files import series_data

PACKAGES = ("sktime", "aeon")  # have the same files; aeon brings numba, which needs an older NumPy
NEEDS = "pip install 'subbyte[series]'"


def installed_series(
    name: str, problem: str, path: Path | None, shape: tuple[int, int], samples: tuple[int, int]
) -> Data:
    """The archive's data set `problem`, from `path` or an installed package; raises DataError for another content."""
    folder = _folder(problem) if path is None else path
    train, test = (folder / f"{problem}_{part}.ts" for part in ("TRAIN", "TEST"))
    data = series_data(name, train, test)
    found = len(data.train), len(data.test)  # type: ignore[arg-type]
    if (data.shape, found) != (shape, samples):
        raise DataError(
            f"{folder}: {found[0]} and {found[1]} series {list(data.shape)}, expected {samples[0]} and {samples[1]} "
            f"{list(shape)}: these are not the files of {problem}. Install them with: {NEEDS}"
        )
    return data


def _folder(problem: str) -> Path:
    for package in PACKAGES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(place) / "datasets" / "data" / problem
            if folder.is_dir():
                return folder
    raise MissingDependencyError("sktime", "series")


@register_data(
    "basic-motions", summary="80 series of a watch's motion, 4 activities, in sktime", shape=(6, 100), needs=NEEDS
)
def basic_motions(path: Path | None = None) -> Data:
    """40 series to train on and 40 to test: 3 accelerations and 3 rates of turn, 10 times a second.

    The UEA multivariate time series classification archive (Bagnall et al., 2018): BasicMotions.
    """
    return installed_series("basic-motions", "BasicMotions", path, (6, 100), (40, 40))


@register_data(
    "japanese-vowels", summary="640 series of spoken vowels, 9 speakers, in sktime", shape=(12, 29), needs=NEEDS
)
def japanese_vowels(path: Path | None = None) -> Data:
    """270 series to train on and 370 to test, of 7 to 29 steps: zeros follow a shorter one.

    Multidimensional curve classification using passing-through regions (Kudo et al., 1999).
    """
    return installed_series("japanese-vowels", "JapaneseVowels", path, (12, 29), (270, 370))
