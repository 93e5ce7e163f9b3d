"""NaN that a model makes is NaN in what follows, as ONNX's evaluator has it; through kernels and through TVM."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import onnx.reference
import pytest
from run_plan import onnxruntime_outputs, run_plan

from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines.host import host_features

NAN, INF = np.nan, np.inf
VALUES = [NAN, -NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 0.5, -2.0, NAN, 4.0, -4.0, 1e-3]
ONES = [1.0] * 16
ROWS = np.array(
    [VALUES, VALUES[::-1], range(16), [*ONES[:3], NAN, *ONES[:12]], [NAN, *ONES[1:]], [*ONES[1:], NAN], [-INF] * 16],
    np.float32,
)
OTHER = ROWS[::-1].copy()
AXIS = [np.array([axis]) for axis in range(2)]

ELEMENTWISE = """
    Relu Sigmoid Tanh LeakyRelu HardSigmoid HardSwish Elu Selu Celu Softplus Softsign Erf Exp Log Sqrt Abs Neg Sign
    Floor Ceil Round Gelu Mish Swish ThresholdedRelu Shrink Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh
    Atanh Softmax LogSoftmax Identity Max Min
"""
PAIRS = "Add Sub Mul Div Pow Equal Less LessOrEqual Greater GreaterOrEqual"
REDUCTIONS = "Max Min Sum Mean Prod L1 L2 LogSum SumSquare"


def case(op: str, *others: Any, **attributes: Any) -> Any:
    """Of ROWS and others: arrays are constants of the file, those in lists come at run time."""
    return pytest.param(op, others, attributes, id=f"{op}-{len(others)}{attributes or ''}")


CASES = [
    *(case(op) for op in ELEMENTWISE.split()),
    case("Softmax", axis=0),
    case("PRelu", np.float32([0.25])),
    case("Clip", np.float32(-1), np.float32(1)),
    case("Clip", [np.float32(-1)], [np.float32(1)]),
    *(
        case(op, *others)
        for op in ("Max", "Min")
        for others in ([np.float32(0.5)], [[OTHER]], [[OTHER], np.float32(1)])
    ),
    *(case(op, [OTHER]) for op in PAIRS.split()),
    *(case(op) for op in ("IsNaN", "IsInf")),
    *(case(f"Reduce{kind}", axes) for kind in REDUCTIONS.split() for axes in AXIS),
    *(case(op, axis=axis, select_last_index=last) for op in ("ArgMax", "ArgMin") for axis in (0, 1) for last in (0, 1)),
]
DEFAULT_OPSET, OPSETS = 21, {"Swish": 24}


def model_of(op: str, others: Any, attributes: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """One node behind a Cast where it makes no float, and what it is given."""
    given = {"x0": ROWS}
    constants = []
    for index, other in enumerate(others, 1):
        if isinstance(other, list):
            given[f"x{index}"] = other[0]
        else:
            constants.append(onnx.numpy_helper.from_array(np.asarray(other), f"x{index}"))
    names = [f"x{index}" for index in range(len(others) + 1)]
    nodes = [
        helper.make_node(op, names, ["made"], "node", **attributes),
        helper.make_node("Cast", ["made"], ["y"], "cast", to=onnx.TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, np.shape(a)) for name, a in given.items()]
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "nan", inputs, [y], constants)
    opset = helper.make_opsetid("", OPSETS.get(op, DEFAULT_OPSET))
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True), given


@pytest.mark.parametrize(("op", "others", "attributes"), CASES)
def test_as_in_onnx(op: str, others: Any, attributes: dict[str, Any]) -> None:
    model, given = model_of(op, others, attributes)
    with np.errstate(all="ignore"):
        wanted = np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, given)[0])
    outputs, _ = run_plan(lower(model, host_features()), given)
    np.testing.assert_allclose(outputs["y"].reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-6)


def test_log_sum_exp_of_infinities() -> None:
    """Also where all are -infinity, of which ONNX's evaluator makes NaN: log 0."""
    rows = np.float32([[-INF, -INF, -INF], [INF, 1, -INF], [NAN, 1, INF], [1000, 1000, -INF], [1, NAN, 1], [0, 0, 0]])
    text = """<ir_version: 10, opset_import: ["": 21]>
    agraph (float[6, 3] x) => (float[6] y) <int64[1] axes = {1}> { y = ReduceLogSumExp<keepdims = 0>(x, axes) }"""
    outputs, _ = run_plan(lower(onnx.parser.parse_model(text), host_features()), {"x": rows})
    wanted = [-INF, INF, NAN, 1000 + np.log(2), NAN, np.log(3)]
    np.testing.assert_allclose(outputs["y"], np.float32(wanted), rtol=1e-6)


@pytest.mark.parametrize("op", ["Not", "Identity"])
def test_nan_does_not_equal_itself(op: str) -> None:
    """x == x, which only NaN is not, and what is made of it."""
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    agraph (float[7, 16] x) => (float[7, 16] y) {{
        same = Equal(x, x)
        asked = {op}(same)
        y = Cast<to = 1>(asked)
    }}"""
    outputs, _ = run_plan(lower(onnx.parser.parse_model(text), host_features()), {"x": ROWS})
    np.testing.assert_array_equal(outputs["y"], np.isnan(ROWS) == (op == "Not"))


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_scattered(reduction: str) -> None:
    """Into NaN, and NaN into a number; np.maximum and np.minimum, as ONNX's evaluator compares by `max` of Python."""
    data, updates = np.float32([[NAN, 1, 2, 3]]), np.float32([[1, NAN, 5, -5]])
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[1, 4] x, int64[1, 4] indices, float[1, 4] updates) => (float[1, 4] y) {{
        y = ScatterElements<axis = 1, reduction = "{reduction}">(x, indices, updates)
    }}"""
    given = {"x": data, "indices": np.array([[0, 1, 2, 3]]), "updates": updates}
    outputs, _ = run_plan(lower(onnx.parser.parse_model(text), host_features()), given)
    combine = {"max": np.maximum, "min": np.minimum}[reduction]
    np.testing.assert_array_equal(outputs["y"], combine(data, updates))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["MaxPool", "GlobalMaxPool"])
def test_max_pools_lose_it_only_beside_numbers(op: str, rank: int) -> None:
    """ONNX says nothing of NaN in a window, and onnxruntime gives NaN or the largest number: each is right here."""
    x = np.random.default_rng(rank).standard_normal((2, 3, *[4] * rank)).astype(np.float32)
    x[0, 0] = NAN
    x[(1, 1, *[0] * rank)] = NAN
    attributes = "" if op.startswith("Global") else f"<kernel_shape = {[2] * rank}, strides = {[2] * rank}>"
    sizes, left = ", ".join(map(str, x.shape)), ", ".join(["1" if op.startswith("Global") else "2"] * rank)
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    agraph (float[{sizes}] x) => (float[2, 3, {left}] y) {{ y = {op}{attributes}(x) }}"""
    model = onnx.parser.parse_model(text)
    outputs, _ = run_plan(lower(model, host_features()), {"x": x})
    numbers = np.where(np.isnan(x), np.float32(-INF), x)
    wanted = onnxruntime_outputs(model, {"x": numbers})["y"]
    assert np.isnan(outputs["y"][0, 0]).all()
    held = np.zeros(wanted.shape, bool)
    held[0, 0] = held[(1, 1, *[0] * rank)] = True
    np.testing.assert_array_equal(outputs["y"][~held], wanted[~held])
    beside = outputs["y"][(1, 1, *[0] * rank)]
    assert np.isnan(beside) or beside == wanted[(1, 1, *[0] * rank)]
