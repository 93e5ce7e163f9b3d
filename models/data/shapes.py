"""Generated images of circles, squares and triangles, with the class of every pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from subbyte.models.data.data_set import Data, refuse_large
from subbyte.models.data.in_memory import Samples
from subbyte.models.data.normalization import measured
from subbyte.models.data.register import register_data
from subbyte.models.options import Count

Array = npt.NDArray[Any]
NAMES = ("background", "circle", "square", "triangle")
FEWEST, MOST = 1, 3  # shapes of an image


@register_data(
    "shapes",
    summary="generated images of circles, squares and triangles; the class of every pixel",
    task="segmentation",
    shape=(3, "size", "size"),
)
def shapes(size: Count = 32, samples: Count = 1000) -> Data:
    """`samples` RGB images of `size` pixels a side to train on and a quarter as many to test; the same every time.

    Shapes have a colour and a texture that do not tell their class, cover each other, and are on a shaded background
    with noise. A target is int64 [size, size], 0 for the background.
    """
    tests = max(1, samples // 4)
    refuse_large("shapes", (samples + tests) * 3 * size**2)
    rng = np.random.default_rng(7)
    drawn = [_draw(rng, size) for _ in range(samples + tests)]
    pixels = torch.from_numpy(np.stack([image for image, _ in drawn]))
    classes = torch.from_numpy(np.stack([label for _, label in drawn]))
    normalization = measured(pixels[tests:], axes=2, largest=255.0)
    return Data(
        "shapes",
        Samples(pixels[tests:], classes[tests:], normalization),
        Samples(pixels[:tests], classes[:tests], normalization),
        shape=(3, size, size),
        outputs=len(NAMES),
        task="segmentation",
        normalization=normalization,
        class_names=NAMES,
    )


def _draw(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """An image uint8 [3, size, size], and the class of each pixel int64 [size, size]."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    slope = rng.uniform(-60, 60, (3, 2, 1, 1)).astype(np.float32)
    image = rng.uniform(60, 200, (3, 1, 1)).astype(np.float32) + slope[:, 0] * rows + slope[:, 1] * columns
    classes = np.zeros((size, size), np.int64)
    for _ in range(rng.integers(FEWEST, MOST + 1)):
        kind = int(rng.integers(1, len(NAMES)))
        inside = _inside(rng, kind, rows, columns)
        classes[inside] = kind
        image[:, inside] = _texture(rng, rows, columns)[:, inside]
    noisy = image + rng.normal(0, 12, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), classes


def _inside(rng: np.random.Generator, kind: int, rows: Array, columns: Array) -> npt.NDArray[np.bool_]:
    """Which pixels belong to a shape of this class, somewhere in the image."""
    radius = rng.uniform(0.14, 0.28)
    y, x = (axis - rng.uniform(0.2, 0.8) for axis in (rows, columns))
    if NAMES[kind] == "circle":
        return np.asarray(y**2 + x**2 < radius**2)
    if NAMES[kind] == "square":
        return np.asarray(np.maximum(abs(y), abs(x)) < 0.85 * radius)
    return np.asarray((y < radius) & (y > 2 * abs(x) - radius))


def _texture(rng: np.random.Generator, rows: Array, columns: Array) -> Array:
    """Pixels float32 [3, size, size]: two shades of a colour in stripes of some direction and width."""
    colour = rng.uniform(20, 235, (3, 1, 1)).astype(np.float32)
    direction, width = rng.uniform(0, np.pi), rng.uniform(0.08, 0.25)
    along = (rows * np.sin(direction) + columns * np.cos(direction)) / width
    return np.asarray(colour + 30 * np.sign(np.sin(2 * np.pi * along)), np.float32)
