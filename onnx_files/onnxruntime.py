"""The one place that imports onnxruntime, which must not report what it runs.

The Linux wheel of onnxruntime 1.31 keeps a database and a device id in the user's cache folder and sends model names
and error texts to its makers, unless an environment variable says no before the first import.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from importlib import import_module
from typing import Any

from subbyte.errors import TelemetryWarning

VARIABLE = "ORT_DISABLE_TELEMETRY"


def onnxruntime(part: str = "") -> Any:
    """The module onnxruntime, or a part of it such as "quantization"; raises ImportError.

    Warns once with TelemetryWarning where another program imported it first, without the variable.
    """
    _silence()
    return import_module(f"onnxruntime.{part}" if part else "onnxruntime")


@functools.cache
def _silence() -> None:
    if "onnxruntime" in sys.modules and os.environ.get(VARIABLE) != "1":
        warnings.warn(
            f"onnxruntime was imported before subbyte, without {VARIABLE}=1: its Linux wheel may send model names and "
            "error texts to its makers. Set the variable before the first import of onnxruntime.",
            TelemetryWarning,
            stacklevel=4,
        )
    os.environ[VARIABLE] = "1"
