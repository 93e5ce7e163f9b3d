"""Small files of a user, one set for each data set that takes a path: name -> writer(folder) -> (path, options)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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


OWN_FILES: dict[str, Writer] = {
    "fashion-mnist": write_clothes,
    "imagefolder": write_images,
    "text": write_text,
    "ts": write_series,
}
