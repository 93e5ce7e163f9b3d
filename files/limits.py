"""Limits on input files, in one place; docs/security.md has the same numbers.

A limit has a name, a value and a meaning. Checks read it here when they run: `limits.NODES`.
"""

from __future__ import annotations

from typing import Final

MEANINGS: Final[dict[str, str]] = {}


def _limit(name: str, value: int, meaning: str) -> int:
    MEANINGS[name] = meaning
    return value


ONNX_BYTES = _limit("ONNX_BYTES", 2**31 - 1, "bytes of an ONNX file without its external data: protobuf's own limit")
EXTERNAL_BYTES = _limit("EXTERNAL_BYTES", 16 << 30, "bytes of the external data of an ONNX file")
NODES = _limit("NODES", 200_000, "nodes of an ONNX file with all functions inlined")
CALL_DEPTH = _limit("CALL_DEPTH", 64, "nested calls of functions of an ONNX file")
TENSOR_BYTES = _limit("TENSOR_BYTES", 2**31 - 1, "bytes of one tensor of an ONNX file: protobuf's own limit")
ELEMENTS = _limit("ELEMENTS", 2**31 - 1, "elements of one tensor: kernels count in 32 bits")
FOLDED_BYTES = _limit("FOLDED_BYTES", 2 << 30, "bytes that `compile` computes of an ONNX file's constants")
FOLDED_STEPS = _limit("FOLDED_STEPS", 1 << 38, "steps of that: multiply-adds of float products, or 64 for an element")
METER_LOG_BYTES = _limit("METER_LOG_BYTES", 1 << 30, "bytes of a meter's log in CSV")
NPY_HEADER_BYTES = _limit("NPY_HEADER_BYTES", 10_000, "bytes of the header of a `.npy` array")
DESCRIPTION_BYTES = _limit("DESCRIPTION_BYTES", 16 << 20, "bytes of a checkpoint's `checkpoint.json`")
RUN_BYTES = _limit("RUN_BYTES", 4 << 20, "bytes of the configuration of a run in YAML or JSON")
RECIPE_BYTES = _limit("RECIPE_BYTES", 1 << 20, "bytes of a recipe in YAML or JSON")
RECIPE_RULES = _limit("RECIPE_RULES", 1_000, "rules of a recipe")
TENSORS_HEADER_BYTES = _limit("TENSORS_HEADER_BYTES", 16 << 20, "bytes of the header of a `.safetensors` file")
NUMBER_CHARACTERS = _limit("NUMBER_CHARACTERS", 40, "characters of a number in a checkpoint's JSON")
IMAGE_VALUES = _limit("IMAGE_VALUES", 1 << 26, "values of the image that a checkpoint's model takes")
RESULT_BYTES = _limit("RESULT_BYTES", 1 << 30, "bytes that an operator of a checkpoint's model makes of one image")
IMAGE_PIXELS = _limit("IMAGE_PIXELS", 1 << 26, "pixels of an image file, and of it resized to cover the crop")
SERIES_BYTES = _limit("SERIES_BYTES", 1 << 28, "bytes of a `.ts` file of series")
TEXT_BYTES = _limit("TEXT_BYTES", 1 << 28, "bytes of the text files of a data set, all together")
TOKENIZER_BYTES = _limit("TOKENIZER_BYTES", 1 << 26, "bytes of a `tokenizer.json`")
DATA_VALUES = _limit("DATA_VALUES", 1 << 28, "values of a data set of series, tables or generated samples")
TABLE_BYTES = _limit("TABLE_BYTES", 1 << 29, "bytes of a table in CSV, or of one in Parquet when it is decompressed")
TABLE_CELLS = _limit("TABLE_CELLS", 1 << 25, "cells of a table")
ARCHIVE_BYTES = _limit("ARCHIVE_BYTES", 1 << 32, "bytes of the arrays of an `.npz` file when it is decompressed")
SOUND_SAMPLES = _limit("SOUND_SAMPLES", 1 << 24, "samples that are read of a `.wav` file")
