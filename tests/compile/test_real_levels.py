"""Weights of real levels, NF4 and a codebook of one's own: from an ONNX file to a bundle, never as integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hand_graphs import Builder
from run_plan import onnxruntime_outputs, random_inputs, run_plan
from test_weights_by_group import grouped_weight

from subbyte import bench, compile, formats, load
from subbyte.errors import CompileError, FormatError
from subbyte.export import float_baseline, inspect
from subbyte.formats import Format, LowBitTensor, PerTensor, RealTable
from subbyte.formats.energy import LOOK_UP
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

HOST = host_features()
PJ_A_MAC = 10.0 + 3.7 + 0.9  # one entry of a table, a float32 multiply and add


@pytest.fixture
def codebook(monkeypatch: pytest.MonkeyPatch) -> Format:
    """Eleven levels of no pattern in codes of four bits, known while a test runs."""
    monkeypatch.setattr(formats.format, "_registry", dict(formats.format._registry))
    levels = np.random.default_rng(5).standard_normal(11).tolist()
    return formats.register(Format("mine", RealTable((*levels[:4], None, *levels[4:])), "mine", energy=LOOK_UP))


def by_channel(fmt: str) -> onnx.ModelProto:
    b = Builder()
    weight = b.node("Transpose", b.decode(fmt, 40, 96), perm=[1, 0])
    scaled = b.node("Mul", b.node("MatMul", b.input(6, 96), weight), b.uniform(40))
    return b.model(b.node("Add", scaled, b.uniform(40)))


def by_group(fmt: str) -> onnx.ModelProto:
    b = Builder()
    weight = b.node("Transpose", grouped_weight(b, fmt, 64, 40, 150), perm=[1, 0])
    return b.model(b.node("Relu", b.node("MatMul", b.input(6, 150), weight)))


def conv(fmt: str) -> onnx.ModelProto:
    b = Builder()
    y = b.node("Conv", b.input(1, 6, 9, 8), b.decode(fmt, 10, 3, 3, 3), group=2, pads=[1, 1, 1, 1])
    return b.model(b.node("Mul", y, b.uniform(1, 10, 1, 1)))


MODELS: dict[str, tuple[Callable[[str], onnx.ModelProto], int, int]] = {  # macs, packed bytes
    "by channel": (by_channel, 6 * 40 * 96, 40 * 48),
    "by group": (by_group, 6 * 40 * 150, 40 * 75),
    "convolution": (conv, 10 * 27 * 9 * 8, 10 * 14),
}


def tensor_of(model: onnx.ModelProto) -> LowBitTensor:
    from subbyte.dialect.graph import view

    graph = view(model)
    return graph.low_bit(next(node for node in graph.nodes if node.domain == "subbyte"))


@pytest.mark.parametrize("fmt", ["nf4", "mine"])
@pytest.mark.parametrize("case", MODELS)
def test_from_file_to_numbers(case: str, fmt: str, codebook: Format, tmp_path: Path) -> None:
    make, macs, packed = MODELS[case]
    model, path = make(fmt), tmp_path / "m.onnx"
    onnx.save(model, path)
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    close = {"rtol": 2e-6, "atol": 1e-6 * float(np.abs(wanted).max())}
    np.testing.assert_allclose(onnx.reference.ReferenceEvaluator(model).run(None, inputs)[0], wanted, **close)
    tensor = tensor_of(model)
    assert set(np.unique(tensor.levels())) <= set(formats.get(fmt).levels.values)

    (layer,) = inspect(path).layers
    assert (layer.weight_format, layer.activation_format) == (fmt + "/64" * (case == "by group"), "float32")
    assert layer.macs == macs
    plain = float_baseline(path)
    np.testing.assert_allclose(next(iter(onnxruntime_outputs(plain, inputs).values())), wanted, **close)

    for features in (HOST, frozenset[str]()):
        got, _ = run_plan(lower(model, features, strict=True), inputs)
        np.testing.assert_allclose(next(iter(got.values())), wanted, **close)
    np.testing.assert_allclose(next(iter(interpret(lower_graph(model), inputs).values())), wanted, **close)

    report = compile(path, tmp_path / "m.subbyte", strict=True)
    (row,) = [row for row in report.rows if row.macs]
    assert row.kernel.startswith("float-lookup-")
    assert (row.weights, row.activation, row.fallback, row.macs) == (fmt, "float32", None, macs)
    assert packed <= row.weight_bytes < packed + 4 * 3 * 40 + 1
    with load(tmp_path / "m.subbyte") as session:
        np.testing.assert_allclose(session.run(inputs), wanted, **close)
        found = bench(session, iterations=3, warmup=1, seconds=None)
    energy = next(e for e in found.energy_modelled.operators if e.name == row.name)
    assert energy.arithmetic == "8 KB table read + float32 multiply + float32 add"
    assert energy.modelled_compute_pj == pytest.approx(macs * PJ_A_MAC + wanted.size * 4.6)


def quantized(fmt: str = "nf4") -> onnx.ModelProto:
    b = Builder()
    weight = b.node("Transpose", b.decode(fmt, 12, 32), perm=[1, 0])
    return b.model(b.node("Mul", b.node("MatMul", b.quantize(b.input(5, 32)), weight), b.uniform(12)))


def test_codes_times_real_levels_are_floats_and_named() -> None:
    model = quantized()
    with pytest.raises(CompileError, match="activation is quantized, but levels of nf4 are real numbers"):
        lower(model, HOST, strict=True)
    inputs = random_inputs(model)
    plan = lower(model, HOST)
    (call,) = [call for call in plan.calls if call.macs]
    assert (call.kind, call.weights) == ("FloatProduct", "nf4")
    assert "real numbers" in (call.fallback or "")
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(run_plan(plan, inputs)[0].values())), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weights", ["nf4", "int4 by group", "float32"])
def test_signs_that_are_padded_with_one_are_in_a_product_of_floats(weights: str) -> None:
    """Weights without a product of signs: the padding is +1 there, too."""
    b = Builder()
    signs = b.binarize(b.input(1, 6, 9, 8), 0.1)
    padded = b.node("Pad", signs, b.constant([0, 0, 1, 2, 0, 0, 0, 1], np.int64), b.constant(1.0))
    made = {
        "nf4": lambda: b.decode("nf4", 10, 6, 3, 3),
        "int4 by group": lambda: b.node(
            "Reshape", grouped_weight(b, "int4", 32, 10, 54), b.constant([10, 6, 3, 3], np.int64)
        ),
        "float32": lambda: b.uniform(10, 6, 3, 3, low=-1),
    }
    model = b.model(b.node("Conv", padded, made[weights]()))
    inputs, plan = random_inputs(model), lower(model, HOST)
    (call,) = [call for call in plan.calls if call.macs]
    assert call.kind in ("FloatProduct", "relax")
    assert call.fallback
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(run_plan(plan, inputs)[0].values())), wanted, rtol=1e-5, atol=1e-4)


def test_a_product_of_integers_with_real_levels_cannot_be_made() -> None:
    weight = LowBitTensor.from_levels(formats.get("nf4"), np.ones((3, 8)), 1.0, PerTensor())
    with pytest.raises(CompileError, match="'p': its activation is int8, and levels of nf4 are real numbers"):
        ops.Product("p", ops.Codes(-128, 127, 128), weight, ops.MatMul(2, 8, 3), ops.Epilogue())
    for ask in (weight.integers, lambda: weight.largest, lambda: weight.sums(4)):
        with pytest.raises(
            FormatError, match="levels of nf4 are real numbers; an integer product needs integer levels"
        ):
            ask()


def other_operator(op: str) -> onnx.ModelProto:
    b = Builder()
    if op == "Gather":
        rows = b.input(3, name="i", dtype=onnx.TensorProto.INT64)
        return b.model(b.node("Gather", b.decode("nf4", 12, 32), rows))
    return b.model(b.node("ConvTranspose", b.input(1, 4, 5, 5), b.decode("nf4", 4, 3, 2, 2)))


@pytest.mark.parametrize("op", ["Gather", "ConvTranspose"])
def test_where_no_kernel_takes_them_the_layer_is_named(op: str) -> None:
    model = other_operator(op)
    with pytest.raises(CompileError, match=r"1 layer would run in float:\n.*nf4"):
        lower(model, HOST, strict=True)
    inputs: dict[str, Any] = {"i": np.array([3, 0, 11])} if op == "Gather" else random_inputs(model)
    plan = lower(model, HOST)
    assert "nf4" in " ".join(call.fallback or "" for call in plan.calls)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(run_plan(plan, inputs)[0].values())), wanted, rtol=1e-5, atol=1e-5)
