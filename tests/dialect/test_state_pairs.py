"""States that a file declares or that are given: which pairs are read, and what is refused with which words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from subbyte.dialect.state import State, declare_states, initial_value, states
from subbyte.errors import ModelError, UnknownNameError, UsageError


def model(*declared: str, initial: np.ndarray | None = None) -> onnx.ModelProto:
    """Inputs x, h, k=1 and outputs y, h_next, k=1_next, of which k is int8; each state is copied."""

    def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = (1, 3)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("x", "y"), ("h", "h_next"), ("k=1", "k=1_next"))]
    nodes += [helper.make_node("Identity", ["x"], ["free"])]
    inputs = [value("x"), value("h"), value("k=1", TensorProto.INT8)]
    outputs = [value("y"), value("h_next"), value("k=1_next", TensorProto.INT8), value("free", shape=("n", 3))]
    tensors = [] if initial is None else [numpy_helper.from_array(initial, "h")]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors))
    if declared:
        helper.set_model_props(made, {"kept": "1", "subbyte.state": "\n".join(declared)})
    return made


def test_declared_and_given_pairs_are_read_once_each() -> None:
    assert states(model()) == ()
    both = (State("h", "h_next"), State("k=1", "k=1_next"))
    assert states(model("h=h_next", "k=1=k=1_next")) == both
    assert states(model("h=h_next"), ["h=h_next", "k=1=k=1_next"]) == both
    written = model("h=y")
    declare_states(written, both)
    assert states(written) == both
    assert {entry.key for entry in written.metadata_props} == {"kept", "subbyte.state"}


@pytest.mark.parametrize("name", ["a\u2028b", "a\rb", "a\x0bb", "größe", " h", "a=b"])
def test_a_name_may_hold_anything_but_a_line_feed(name: str) -> None:
    def renamed(to: str) -> onnx.ModelProto:
        made = model()
        made.graph.input[1].name = made.graph.node[1].input[0] = to
        return made

    made = renamed(name)
    declare_states(made, states(made, [f"{name}=h_next"]))
    assert states(made) == (State(name, "h_next"),)
    with pytest.raises(UsageError, match="holds a line break"):
        states(renamed("a\nb"), ["a\nb=h_next"])


def test_the_initial_value_is_an_initializer_or_zeros() -> None:
    ones = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(initial_value(model(initial=ones), State("h", "h_next")), ones)
    zeros = initial_value(model(), State("k=1", "k=1_next"))
    assert (zeros.dtype, zeros.shape, zeros.any()) == (np.int8, (1, 3), False)
    with pytest.raises(ModelError, match=r"its initial value is float \[3\], the input float \[1, 3\]"):
        initial_value(model(initial=ones[0]), State("h", "h_next"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("h", r"is not a pair 'input=output' of the graph; inputs: .*\bh\b.*; outputs: .*\bh_next\b"),
        ("=h_next", "is not a pair 'input=output'"),
        ("hh=h_next", "hh"),
        ("h=h_nxt", "h_nxt"),
        ("h=k=1_next", r"the input is float \[1, 3\], the output int8 \[1, 3\]"),
        ("h=free", "'free' has a dynamic shape.*make_dynamic_shape_fixed"),
    ],
)
def test_other_pairs_are_refused(line: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        states(model(line))
    with pytest.raises(UsageError, match=reason):
        states(model(), [line])


def test_a_name_near_an_input_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'h_next'"):
        states(model(), ["h=h_nxt"])


@pytest.mark.parametrize(("second", "side"), [("x=h_next", "output 'h_next'"), ("h=y", "input 'h'")])
def test_a_value_in_two_states_is_refused(second: str, side: str) -> None:
    with pytest.raises(ModelError, match=f"two states have the {side}"):
        states(model("h=h_next", second))
    with pytest.raises(UsageError, match=f"two states have the {side}"):
        states(model("h=h_next"), [second])
