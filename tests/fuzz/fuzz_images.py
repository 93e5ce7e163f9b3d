"""Images in folders, in every format that is read, and IDX files: spoilt in their headers, chunks and data."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from corruption import Rng, corrupted, number, pick
from kinds import Fault
from PIL import Image

from subbyte.models.data import ImageFolder, read_idx

FORMATS = ("png", "jpeg", "bmp", "webp", "ppm", "tiff")
SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".ppm", ".tif")
IMAGES, LABELS = 0x803, 0x801


def prepare(folder: Path) -> list[tuple[str, bytes]]:
    """Right images, small ones of every format, mode and size: suffix and bytes."""
    rng = np.random.default_rng(1)
    made = []
    for suffix, name in zip(SUFFIXES, FORMATS, strict=True):
        for mode, shape in (("RGB", (9, 7, 3)), ("L", (5, 12)), ("RGBA", (8, 8, 4)), ("P", (6, 6)), ("1", (10, 3))):
            image = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8), "RGBA" if mode == "RGBA" else None)
            image = image.convert(mode)
            options = [{}]
            if name == "tiff":
                options += [{"compression": kind} for kind in ("tiff_lzw", "packbits", "tiff_adobe_deflate")]
            for keywords in options:
                file = io.BytesIO()
                try:
                    image.save(file, name, **keywords)
                except (OSError, ValueError):  # this format has no such mode
                    continue
                made.append((suffix, file.getvalue()))
    return made


def case(state: list[tuple[str, bytes]], rng: Rng, folder: Path) -> str:
    """One image out of a folder, or one IDX file."""
    if rng.random() < 0.3:
        return _idx(rng, folder)
    suffix, data = pick(rng, state)
    whole = rng.random() < 0.1
    if not whole:
        data = _chunks(data, rng) if suffix == ".png" and rng.random() < 0.7 else corrupted(data, rng)
    if rng.random() < 0.1:
        suffix = pick(rng, SUFFIXES)
    (folder / "given" / "class").mkdir(parents=True)
    (folder / "given" / "class" / f"image{suffix}").write_bytes(data)
    torch.manual_seed(0)
    crop = bool(rng.integers(2))
    try:
        image, label = ImageFolder(folder / "given", ["class"], (8, 8), random_crop=crop)[0]
    except Exception:
        if whole:
            raise Fault("a right image is refused") from None
        raise
    if image.shape != (3, 8, 8) or image.dtype != torch.float32 or not image.isfinite().all() or label != 0:
        raise Fault(f"image {tuple(image.shape)} {image.dtype}, label {label}")
    return "read"


def _chunks(data: bytes, rng: Rng) -> bytes:
    """A PNG with a chunk changed, left out, given twice or moved, and right checksums."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(chunks)))
        kind, content = chunks[at]
        way = int(rng.integers(6))
        if way == 0 and len(chunks) > 1:
            del chunks[at]
        elif way == 1:
            chunks.insert(int(rng.integers(len(chunks))), chunks[at])
        elif way == 2:
            chunks[at] = (pick(rng, (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"IEND")), content)
        elif way == 3:
            chunks[at] = (b"IDAT", zlib.compress(bytes(int(pick(rng, (0, 10, 1 << 20))))))
        elif kind == b"IHDR":
            sizes = [int(pick(rng, (number(rng), 7, 60_000, 100_000))) % (1 << 32) for _ in range(2)]
            chunks[at] = (kind, struct.pack(">II", *sizes) + corrupted(content[8:], rng, 1))
        else:
            chunks[at] = (kind, corrupted(content, rng))
    rows = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return data[:8] + b"".join(rows)


def _idx(rng: Rng, folder: Path) -> str:
    """Images or labels in IDX, plain or gzipped, with a shape that may lie."""
    magic = pick(rng, (IMAGES, LABELS))
    shape = tuple(int(n) for n in rng.integers(0, 6, magic & 0xFF))
    values = rng.integers(0, 256, shape).astype(np.uint8)
    said = list(shape)
    if rng.random() < 0.4:
        said[int(rng.integers(len(said)))] = number(rng) % (1 << 32)
    data = struct.pack(f">I{len(said)}I", magic, *said) + values.tobytes()
    plain = rng.random() < 0.3
    spoil = not plain and rng.random() < 0.6
    data = corrupted(data, rng) if spoil else data
    packed = bool(rng.integers(2))
    if packed:
        data = gzip.compress(data, 1)
        data = corrupted(data, rng) if not plain and rng.random() < 0.3 else data
    (folder / "given").mkdir()
    path = folder / "given" / ("file.gz" if packed else "file")
    path.write_bytes(data)
    found = read_idx(path, magic)
    if plain and said == list(shape) and not np.array_equal(found, values):
        raise Fault("not the values that were written")
    if found.ndim != magic & 0xFF or found.dtype != np.uint8:
        raise Fault(f"{found.dtype} {found.shape}")
    return "read"
