"""State from the file to the bundle: the same numbers as onnxruntime with the state passed in and out, run by run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from state_models import integer_cell, parsed, sequence, stream_of_convolution

import subbyte
from subbyte.dialect.exactness import RoundingTies
from subbyte.dialect.state import State, declare_states
from subbyte.errors import CompileError, ModelError, UnknownNameError, UsageError
from subbyte.onnx_files.loader import open_onnx
from subbyte.runtime.golden import golden_outputs, golden_runs, golden_states
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.compiler import bundle_plan, compile
from subbyte.tvm_kernels.golden import golden_tensors
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.replay import Origin
from subbyte.tvm_kernels.states import with_states


def test_an_integer_cell_of_another_file_is_bit_equal_for_a_thousand_runs(tmp_path: Path) -> None:
    model = integer_cell()
    report = compile(model, tmp_path / "m.subbyte", state=["h=h_next"])
    assert report.not_replayed is None
    assert report.state_bytes == 64 + 4
    rng = np.random.default_rng(1)
    inputs = [{"x": rng.integers(0, 256, (1, 8)).astype(np.uint8)} for _ in range(1000)]
    wanted = sequence(model, {"h": "h_next"}, {"h": np.zeros((1, 16), np.uint8)}, inputs)
    assert len({made["h_next"].tobytes() for made in wanted}) > 900  # it does not settle
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        assert [info.name for info in (*session.inputs, *session.outputs)] == ["x", "y"]
        for feeds, made in zip(inputs, wanted, strict=True):
            np.testing.assert_array_equal(session.run(feeds["x"]), made["y"])
            np.testing.assert_array_equal(session.state["h"], made["h_next"])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_is_the_convolution_of_the_whole_signal(threads: int, tmp_path: Path) -> None:
    """And the state has ONNX's order of axes, whatever the kernels read."""
    model = stream_of_convolution()
    declare_states(model, [State("past", "kept")])
    compile(model, tmp_path / "m.subbyte")
    signal = np.random.default_rng(2).standard_normal((1, 3, 64)).astype(np.float32)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    padded = np.concatenate([np.zeros((1, 3, 2)), signal], axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], 3, axis=1)  # [3, 64, 3]
    whole = np.einsum("cts,ocs->ot", windows, weights)[None]
    with subbyte.load(tmp_path / "m.subbyte", threads=threads) as session:
        for _ in range(2):
            parts = [session.run(np.ascontiguousarray(signal[:, :, at : at + 4])) for at in range(0, 64, 4)]
            np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(session.state["past"], signal[:, :, -2:])
            session.reset()


def test_a_gru_as_torch_exports_it_is_within_tolerance_for_a_thousand_runs(tmp_path: Path) -> None:
    """GRUCell in standard operators, its hidden vector with an axis for layers as nn.GRU has it."""
    rng = np.random.default_rng(3)
    model = parsed(
        """gru (float[1, 8] x, float[1, 1, 16] h) => (float[1, 16] y, float[1, 1, 16] h_next) {
          [before] last = Squeeze(h, zero)
          [of_x] i = Gemm <transB = 1> (x, w, b)
          [of_h] g = Gemm <transB = 1> (last, r, b)
          [parts_x] ir, iz, in = Split <axis = 1, num_outputs = 3> (i)
          [parts_h] hr, hz, hn = Split <axis = 1, num_outputs = 3> (g)
          [sum_r] sr = Add(ir, hr)
          [reset] rr = Sigmoid(sr)
          [sum_z] sz = Add(iz, hz)
          [update] z = Sigmoid(sz)
          [gated] rn = Mul(rr, hn)
          [sum_n] sn = Add(in, rn)
          [new] n = Tanh(sn)
          [change] d = Sub(last, n)
          [kept] k = Mul(z, d)
          [hidden] y = Add(n, k)
          [after] h_next = Unsqueeze(y, zero)
        }""",
        w=rng.uniform(-0.5, 0.5, (48, 8)).astype(np.float32),
        r=rng.uniform(-0.5, 0.5, (48, 16)).astype(np.float32),
        b=rng.uniform(-0.1, 0.1, 48).astype(np.float32),
        zero=np.array([0]),
    )
    compile(model, tmp_path / "m.subbyte", state=["h=h_next"])
    inputs = [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(1000)]
    wanted = sequence(model, {"h": "h_next"}, {"h": np.zeros((1, 1, 16), np.float32)}, inputs)
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        for feeds, made in zip(inputs, wanted, strict=True):
            np.testing.assert_allclose(session.run(feeds["x"]), made["y"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.state["h"], wanted[-1]["h_next"], rtol=1e-4, atol=1e-5)


def test_a_rounding_tie_of_one_run_is_allowed_for_in_the_next() -> None:
    """The first run reads codes of zeros, which every engine rounds alike; later ones read codes of a float sum."""
    model = parsed(
        """ties (float[1, 8] x, float[1, 4] h) => (float[1, 4] y, float[1, 4] h_next) {
          [code] q = QuantizeLinear(h, step)
          [value] y = DequantizeLinear(q, step)
          [sum] h_next = MatMul(x, w)
        }""",
        w=np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32),
        step=np.array(0.5, np.float32),
    )
    outputs = {"y": np.ones((1, 4), np.float32), "h_next": np.ones((1, 4), np.float32)}
    assert RoundingTies(model).allowances(outputs) == {"y": 0.0, "h_next": 0.0}
    declare_states(model, [State("h", "h_next")])
    assert RoundingTies(model).allowances(outputs) == {"y": 0.5, "h_next": 0.0}


SEVERAL = """several (float[2] x, float[2] a, float[2] b, float[2] c, float[2] d)
    => (float[2] y, float[2] z, float[2] a2, float[2] b2, float[2] c2, float[2] d2) {
  [y] y = Add(x, a)
  [to_a] a2 = Identity(b)
  [to_b] b2 = Identity(a)
  [keep] c2 = Identity(c)
  [next] d2 = Add(d, c)
  [again] z = Identity(d2)
}"""


def test_states_that_swap_that_stay_and_that_are_an_output_too(tmp_path: Path) -> None:
    start = {"a": [1, 2], "b": [3, 4], "c": [0.5, -1]}  # d: zeros
    model = parsed(SEVERAL, **{name: np.array(value, np.float32) for name, value in start.items()})
    declare_states(model, [State(name, f"{name}2") for name in "abcd"])
    compile(model, tmp_path / "m.subbyte")
    x = np.array([10, 20], np.float32)
    with subbyte.load(tmp_path / "m.subbyte") as session:
        for run in range(1, 6):
            before = session.state["a"]
            made = session.run(x)
            assert isinstance(made, dict)
            np.testing.assert_array_equal(made["y"], x + before)
            np.testing.assert_array_equal(before, start["b" if run % 2 == 0 else "a"])
            np.testing.assert_array_equal(session.state["c"], start["c"])
            np.testing.assert_array_equal(made["z"], run * np.array(start["c"]))
            np.testing.assert_array_equal(session.state["d"], made["z"])


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int32", "int64", "uint8"])
def test_a_counter_of_any_type_without_axes_and_without_inputs(dtype: str, tmp_path: Path) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    name = {"float64": "double"}.get(dtype, dtype)
    model = parsed(
        f"count () => ({name} y) {{ [y] y = Mul(n, two) [next] m = Add(n, one) }}",
        one=np.array(1, dtype),
        two=np.array(2, dtype),
        n=np.array(5, dtype),
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("n", kind, []))
    model.graph.output.append(onnx.helper.make_tensor_value_info("m", kind, []))
    compile(model, tmp_path / "m.subbyte", state=["n=m"])
    with subbyte.load(tmp_path / "m.subbyte") as session:
        assert [int(session.run([])) for _ in range(4)] == [10, 12, 14, 16]
        assert (session.state["n"].dtype, session.state["n"].shape, int(session.state["n"])) == (dtype, (), 9)
        session.reset()
        assert int(session.run([])) == 10


def test_a_run_that_fails_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    model = parsed(
        """pick (int64[1] i, float[1] n) => (float[1] y, float[1] m) {
          [next] m = Add(n, one)
          [choose] t = Gather(table, i)
          [y] y = Add(t, m)
        }""",
        one=np.ones(1, np.float32),
        table=np.arange(4, dtype=np.float32),
    )
    compile(model, tmp_path / "m.subbyte", state=["n=m"])
    for threads in (1, 2):
        with subbyte.load(tmp_path / "m.subbyte", threads=threads) as session:
            assert session.run(np.array([2])) == [3.0]
            with pytest.raises(subbyte.errors.InputError, match="index 9"):
                session.run(np.array([9]))
            assert session.state["n"] == [1.0]
            assert session.run(np.array([2])) == [4.0]


def test_the_golden_run_is_several_runs_from_the_initial_state(tmp_path: Path) -> None:
    model = integer_cell()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 16), 7, np.uint8), "h"))
    compile(model, tmp_path / "m.subbyte", state=["h=h_next"])
    with subbyte.load(tmp_path / "m.subbyte") as session:
        inputs = [{"x": arrays[0]} for arrays in golden_runs(session.bundle)]
        outputs, states = golden_outputs(session.bundle), golden_states(session.bundle)
    assert len({feeds["x"].tobytes() for feeds in inputs}) == len(inputs) == 4
    del model.graph.initializer[-1]
    wanted = sequence(model, {"h": "h_next"}, {"h": np.full((1, 16), 7, np.uint8)}, inputs)
    np.testing.assert_array_equal(outputs[0], [made["y"] for made in wanted])
    np.testing.assert_array_equal(states[0], wanted[-1]["h_next"])


def test_a_next_value_from_a_wrong_place_does_not_pass_the_replay(tmp_path: Path) -> None:
    model = parsed(SEVERAL)
    declare_states(model, [State(name, f"{name}2") for name in "abcd"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "b"))
    host = get_target("host")
    graph = lower_graph(model, host.features)
    plan = assemble(graph, host.features)
    golden, origin = golden_tensors(model, plan), Origin(lambda: graph, with_states(model))
    bundle_plan(plan, host, tmp_path / "right.subbyte", golden)
    first, second, *others = plan.states
    swapped = (replace(first, next=second.next), replace(second, next=first.next), *others)
    with pytest.raises(
        CompileError, match=r"does not replay .* operator of the first run equals .*: a state or a later"
    ):
        bundle_plan(replace(plan, states=swapped), host, tmp_path / "wrong.subbyte", golden, origin=origin)
    late = (replace(first, initial=None if first.initial is not None else 0), *plan.states[1:])
    with pytest.raises(CompileError, match="does not replay its golden run"):
        bundle_plan(replace(plan, states=late), host, tmp_path / "late.subbyte", golden, origin=origin)
    assert [path.name for path in tmp_path.iterdir()] == ["right.subbyte"]


NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # each example is compiled
UNARY, BINARY = ("Abs", "Neg", "Identity", "Tanh"), ("Add", "Sub", "Mul")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[str]]:
    """A graph of elementwise operators in which any value may be the next one of any state."""
    count = draw(st.integers(1, 3))
    values, nodes = ["x", *(f"s{i}" for i in range(count))], []
    for index in range(draw(st.integers(count + 1, count + 8))):
        binary = draw(st.booleans())
        reads = draw(st.lists(st.sampled_from(values), min_size=1 + binary, max_size=1 + binary))
        nodes.append(onnx.helper.make_node(draw(st.sampled_from(BINARY if binary else UNARY)), reads, [f"v{index}"]))
        values.append(f"v{index}")
    made = draw(st.permutations([f"v{i}" for i in range(len(nodes))]))
    infos = {n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 20]) for n in values}
    inputs = [infos[name] for name in values[: count + 1]]
    graph = onnx.helper.make_graph(nodes, "drawn", inputs, [infos[name] for name in made[: count + 1]])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return model, [f"s{i}={made[i + 1]}" for i in range(count)]


@settings(max_examples=8, deadline=None, phases=NO_SHRINKING, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 99))
def test_any_value_may_be_the_next_one_of_any_state(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[onnx.ModelProto, list[str]], seed: int
) -> None:
    model, pairs = drawn
    path = tmp_path_factory.mktemp("drawn") / "m.subbyte"
    compile(model, path, state=pairs)
    rng = np.random.default_rng(seed)
    states = dict(pair.split("=") for pair in pairs)
    initial = {name: rng.uniform(-1, 1, (1, 20)).astype(np.float32) for name in states}
    inputs = [{"x": rng.uniform(-1, 1, (1, 20)).astype(np.float32)} for _ in range(4)]
    wanted = sequence(model, states, initial, inputs)
    with subbyte.load(path, threads=1) as session:
        for name, value in initial.items():
            session.state[name] = value
        for feeds, made in zip(inputs, wanted, strict=True):
            np.testing.assert_allclose(session.run(feeds["x"]), made[model.graph.output[0].name], 1e-5, 1e-6)
            for name, after in states.items():
                np.testing.assert_allclose(session.state[name], made[after], 1e-5, 1e-6)


def test_an_initializer_of_an_input_that_is_no_state_is_a_constant(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    model = parsed("k (float[2] x, float[2] c) => (float[2] y) { [y] y = Add(x, c) }", c=ones)
    compile(model, tmp_path / "m.subbyte")
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(ones), ones + 1)
        assert len(session.state) == 0


def test_the_file_keeps_its_hash_and_its_model_is_not_changed() -> None:
    model = parsed(SEVERAL, b=np.ones(2, np.float32))
    before = model.SerializeToString()
    file = with_states(model, ["b=b2"])
    assert model.SerializeToString() == before
    assert [tensor.name for tensor in file.model.graph.initializer] == []
    assert [(str(state), value.tolist()) for state, value in (file.states or {}).items()] == [("b=b2", [1, 1])]
    assert file.sha256 == open_onnx(model).sha256


@pytest.mark.parametrize(
    ("pair", "error", "reason"),
    [
        ("a=a3", UnknownNameError, "unknown output of state 'a=a3'.* Known: a2, b2"),
        ("q=a2", UnknownNameError, "unknown input of state 'q=a2'"),
        ("a", UsageError, "is not a pair"),
        ("a=wide", UsageError, r"the input is float \[2\], the output float \[1\]"),
    ],
)
def test_wrong_pairs_write_no_bundle(pair: str, error: type[Exception], reason: str, tmp_path: Path) -> None:
    model = parsed(SEVERAL, top=np.array([0]))
    model.graph.node.append(onnx.helper.make_node("Gather", ["y", "top"], ["wide"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(error, match=reason):
        compile(model, tmp_path / "m.subbyte", state=[pair])
    assert list(tmp_path.iterdir()) == []


def test_a_state_whose_shape_the_file_states_wrongly_is_refused() -> None:
    model = parsed(
        "g (float[2] x, float[2] h) => (float[2] y, float[2] n) { y = Add(x, h) n = Concat <axis = 0> (x, h) }"
    )
    with pytest.raises(ModelError):
        lower_graph(with_states(model, ["h=n"]))


@pytest.mark.parametrize("state", [[3], "h=n", 3, None, {"h": "n"}])
def test_pairs_that_are_no_list_of_texts_are_refused(state: object) -> None:
    with pytest.raises(UsageError, match=r"state is .*, expected a list of pairs 'input=output', such as"):
        with_states(integer_cell(), state)


def test_a_run_returns_something_besides_state() -> None:
    model = parsed("g (float[2] x, float[2] h) => (float[2] n) { n = Add(x, h) }")
    with pytest.raises(ModelError, match=r"every output is the next value of a state \(h=n\)"):
        with_states(model, ["h=n"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_initial_value_is_finite(value: float) -> None:
    model = parsed(SEVERAL, a=np.array([0, value], np.float32))
    with pytest.raises(ModelError, match="initial value holds NaN or infinity"):
        with_states(model, ["a=a2"])


def test_an_output_that_is_the_input_itself_is_refused(tmp_path: Path) -> None:
    model = parsed("g (float[2] x, float[2] h) => (float[2] y, float[2] h) { y = Add(x, h) }")
    with pytest.raises(CompileError, match="'h' is an input or a constant"):
        compile(model, tmp_path / "m.subbyte", state=["h=h"])
