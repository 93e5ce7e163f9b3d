"""Small files of a user, one set for each data set that takes a path: name -> writer(folder) -> (path, options)."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

Writer = Callable[[Path], tuple[Path, dict[str, Any]]]
TS_HEADER = "# a comment\n@problemName mine\n@timeStamps false\n@classLabel true up down\n@data\n"


def write_images(folder: Path) -> tuple[Path, dict[str, Any]]:
    for part in ("train", "test"):
        for shade, name in ((40, "cat"), (200, "dog")):
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (12 + number, 10), (shade,) * 3).save(folder / part / name / f"{number}.png")
    return folder, {"size": 8}


def idx(values: np.ndarray, magic: int) -> bytes:
    return struct.pack(f">I{values.ndim}I", magic, *values.shape) + values.astype(np.uint8).tobytes()


def write_clothes(folder: Path) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 12)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28)), 0x803))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, count), 0x801))
    return folder, {}


def write_series(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Two channels, of 3 and 2 steps."""
    (folder / "mine_TRAIN.ts").write_text(TS_HEADER + "1,2,3:4,4,4:up\n5,6:4,4:down\n")
    (folder / "mine_TEST.ts").write_text(TS_HEADER + "3,2,1:4,4,5:down\n")
    return folder, {}


def write_text(folder: Path) -> tuple[Path, dict[str, Any]]:
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"text number {number}, " * 4)
    return folder, {"context": 16}


def write_table(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [
        f"{number},{number % 3},{'red' if number % 2 else 'blue'},{'up' if number % 5 else 'down'}"
        for number in range(20)
    ]
    (folder / "t.csv").write_text("\n".join(["size,count,colour,way", *rows]))
    return folder / "t.csv", {"target": "way"}


def write_arrays(folder: Path) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(0)
    np.savez(folder / "a.npz", x=rng.integers(0, 256, (20, 3, 6, 5), np.uint8), y=np.arange(20) % 4)
    return folder / "a.npz", {}


def wav(samples: np.ndarray, rate: int = 100, width: int = 2) -> bytes:
    """A file of whole numbers [samples, channels]."""
    content = io.BytesIO()
    with wave.open(content, "wb") as sound:
        sound.setparams((samples.shape[1], width, rate, 0, "NONE", ""))
        sound.writeframes(samples.astype({1: np.uint8, 2: "<i2", 4: "<i4"}[width]).tobytes())
    return content.getvalue()


def write_sounds(folder: Path) -> tuple[Path, dict[str, Any]]:
    for part in ("train", "test"):
        for name, height in (("loud", 20_000), ("quiet", 200)):
            (folder / part / name).mkdir(parents=True)
            for length in (5, 12):
                (folder / part / name / f"{length}.wav").write_bytes(wav(np.full((length, 2), height)))
    return folder, {"rate": 100, "seconds": 0.08}


def name_datasets(folder: Path) -> tuple[Path, dict[str, Any]]:
    """This file's own `make_datasets`."""
    return Path("own_files:make_datasets"), {}


def make_datasets() -> tuple[TensorDataset, TensorDataset]:
    series, labels = torch.arange(48.0).reshape(6, 2, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    return TensorDataset(series, labels), TensorDataset(series[:2], labels[:2])


OWN_FILES: dict[str, Writer] = {
    "fashion-mnist": write_clothes,
    "dataset": name_datasets,
    "imagefolder": write_images,
    "npz": write_arrays,
    "table": write_table,
    "text": write_text,
    "ts": write_series,
    "wav": write_sounds,
}
