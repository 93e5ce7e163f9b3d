"""Models with state as ONNX files of others state them, and what onnxruntime makes of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from subbyte.onnx_files.onnxruntime import onnxruntime

Arrays = Mapping[str, np.ndarray]


def parsed(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    """A model of opset 21 by its text, with these initializers."""
    made = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in initializers.items())
    return made


def integer_cell(seed: int = 0) -> onnx.ModelProto:
    """A recurrent cell in integers: y = x W + h U, and h_next, uint8 [1, 16], is the code of y; state `h=h_next`."""
    rng = np.random.default_rng(seed)
    return parsed(
        """cell (uint8[1, 8] x, uint8[1, 16] h) => (int32[1, 16] y, uint8[1, 16] h_next) {
          [of_x] a = MatMulInteger(x, w)
          [of_h] b = MatMulInteger(h, u)
          [sum] y = Add(a, b)
          [float] f = Cast <to = 1> (y)
          [code] h_next = QuantizeLinear(f, step, zero)
        }""",
        w=rng.integers(-20, 21, (8, 16)).astype(np.int8),  # onnxruntime saturates larger ones on CPUs without VNNI
        u=rng.integers(-20, 21, (16, 16)).astype(np.int8),
        step=np.array(32.0, np.float32),
        zero=np.array(100, np.uint8),
    )


def stream_of_convolution(seed: int = 0) -> onnx.ModelProto:
    """A convolution over time, four samples a run: the last two of a run are the state `past=kept` of the next."""
    rng = np.random.default_rng(seed)
    return parsed(
        """stream (float[1, 3, 4] x, float[1, 3, 2] past) => (float[1, 5, 4] y, float[1, 3, 2] kept) {
          [window] all = Concat <axis = 2> (past, x)
          [convolve] y = Conv(all, w)
          [keep] kept = Slice(all, first, end, axis)
        }""",
        w=rng.standard_normal((5, 3, 3)).astype(np.float32),
        first=np.array([4]),
        end=np.array([6]),
        axis=np.array([2]),
    )


def sequence(
    model: onnx.ModelProto, states: Mapping[str, str], initial: Arrays, inputs: Sequence[Arrays]
) -> list[dict[str, np.ndarray]]:
    """What onnxruntime gives in each run for all outputs, with the states passed in and out."""
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    held, made = dict(initial), []
    for feeds in inputs:
        made.append(dict(zip(names, session.run(names, {**feeds, **held}), strict=True)))
        held = {before: made[-1][after] for before, after in states.items()}
    return made
