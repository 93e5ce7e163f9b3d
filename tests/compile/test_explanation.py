"""What `compile --explain` says: each rule and kernel row that declined, and why, in words of the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hand_graphs import Builder
from qdq_file import RNG, File
from random_graphs import random_network
from test_weights_by_group import grouped_weight
from watched_rules import DONE, assert_readable, watch

from subbyte.cli import main
from subbyte.errors import CompileError, UsageError
from subbyte.runtime import open_bundle
from subbyte.tvm_kernels import explanation as explanations
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.explanation import Explanation
from subbyte.tvm_kernels.lowering import lower_graph, stages
from subbyte.tvm_kernels.rewrites.register import registered

AVX2 = frozenset({"avx2", "fma"})


def explained(model: onnx.ModelProto, features: frozenset[str] = AVX2, strict: bool = False) -> Explanation:
    explanation = Explanation()
    assemble(lower_graph(model, features, strict=strict, explanation=explanation), features)
    return explanation


def declines(explanation: Explanation, node: str) -> dict[str, tuple[str, str | None]]:
    """Reason and taker, by rule."""
    return {fact.rule: (fact.reason, fact.taken_by) for fact in explanation.declined if fact.node == node}


def rows(explanation: Explanation, node: str, operator: str) -> dict[str, str | None]:
    """Why each kernel row was passed over."""
    return {fact.kernel: fact.reason for fact in explanation.kernels if (fact.node, fact.operator) == (node, operator)}


# ---- real layers ----


def by_group(b: Builder, x: str) -> onnx.ModelProto:
    """A product with int4 weights [32, 96] that have a scale for each 48 of a row."""
    weight = b.node("Transpose", grouped_weight(b, "int4", 48, 32, 96), perm=[1, 0])
    return b.model(b.node("MatMul", x, weight))


def test_int4_in_groups_of_48() -> None:
    b = Builder()
    found = explained(by_group(b, b.quantize(b.input(4, 96))))
    reason = "its weights have a scale for each group of 48, which the sum applies"
    assert declines(found, "n3.MatMul") == {"scales": (reason, "quantized matrix product")}
    kernels = rows(found, "n3.MatMul", "QuantizedProduct of int8 and int4")
    assert kernels["dot-avx2"] is None
    assert kernels["depthwise-avx2"] == "scales by group"
    assert kernels["dot-avx512-vnni"] == "needs avx512bw, avx512vnni"
    assert kernels["portable"] == "'dot-avx2' is preferred"
    assert [kernel for kernel, why in kernels.items() if why is None] == ["dot-avx2"]
    assert not found.by_tvm
    assert not found.in_float


@pytest.mark.parametrize(
    ("fmt", "pads", "reason"),
    [
        ("int4", 0, "its weights are int4; handled: binary"),
        ("binary", 1, "it pads with 0, which is not a binary value"),
        ("binary", 0, None),
    ],
)
def test_signs_that_are_multiplied_as_codes(fmt: str, pads: int, reason: str | None) -> None:
    b = Builder()
    found = explained(b.model(b.conv(b.binarize(b.input(1, 8, 6, 6)), fmt, 8, 8, 3, 3, pads=[pads] * 4)))
    told = {} if reason is None else {"product of binary values": (reason, "quantized convolution")}
    assert declines(found, "n2.Conv") == told
    chosen = {fact.kernel for fact in found.kernels if fact.node == "n2.Conv" and fact.reason is None}
    assert ("dot-avx2" in chosen) == (reason is not None)


def test_what_strict_refuses_names_the_rules() -> None:
    file = File(1, 4, 5, 6, 6)
    model = file.model(file.node("Conv", file.quantized("x"), file.weight(8, 4, 3, 3, 3)))
    message = (
        r"'Conv3': weights are int8, but no kernel is a Conv with them; no 'window', 'quantized convolution', as its "
        r"windows are over 3 axes; handled: 1 and 2"
    )
    with pytest.raises(CompileError, match=message):
        explained(model, strict=True)


def clipped() -> onnx.ModelProto:
    """A quantized convolution behind a Clip to 0.5, which is not a level times the step 0.03."""
    file = File(1, 6, 8, 8)
    y = file.node("Clip", file.quantized("x"), file.constant(0.0), file.constant(0.5))
    return file.model(file.node("Conv", y, file.weight(8, 6, 3, 3)))


BOUNDS = "its bounds 0 and 0.5 are not multiples of the step 0.03"
IN_FLOAT = (
    "Conv4 (FloatProduct): computed in float32: weights are int8, but its activation 'Clip2' is quantized, but 'Clip2' "
    f"(Clip) in between is computed in float32: {BOUNDS}"
)


def test_an_operator_in_between_that_is_computed_in_float() -> None:
    found = explained(clipped())
    assert declines(found, "Clip2") == {"step after bounds": (BOUNDS, "clip")}
    assert [str(fact) for fact in found.in_float] == [IN_FLOAT]


def test_a_convolution_with_dilation_has_a_kernel() -> None:
    b = Builder()
    y = b.node("Conv", b.input(1, 8, 9, 9), b.uniform(16, 8, 3, 3), b.uniform(16), dilations=[2, 2])
    found = explained(b.model(b.node("Softmax", y, axis=1)))
    kernels = rows(found, "n0.Conv", "FloatProduct of float32 and float32")
    assert {"float-avx2": None, "float-portable": "'float-avx2' is preferred"}.items() <= kernels.items()
    assert kernels["depthwise-portable"] == "not a depthwise convolution with one filter a channel"
    assert declines(found, "n0.Conv") == {}
    assert declines(found, "n1.Softmax") == {"softmax": ("its axis is 1 of [1, 16, 5, 5]; handled: the last", None)}
    assert [str(fact) for fact in found.by_tvm] == [
        "n1.Softmax (Softmax): compiled by TVM to float32 [1, 16, 5, 5]: declined by 'softmax'"
    ]


def test_a_convolution_over_three_axes_is_declined_by_each_rule() -> None:
    b = Builder()
    found = explained(b.model(b.node("Conv", b.input(1, 2, 5, 5, 5), b.uniform(3, 2, 3, 3, 3), dilations=[2, 1, 1])))
    reason = "its windows are over 3 axes; handled: 1 and 2"
    assert declines(found, "n0.Conv") == {"window": (reason, None), "convolution": (reason, None)}
    assert found.by_tvm[0].reason == "declined by 'window', 'convolution'"


def test_an_unsigned_weight_of_a_qdq_file() -> None:
    file = File(1, 4, 8, 8)
    codes = RNG.integers(0, 256, (8, 4, 3, 3))
    codes.flat[:2] = 0, 255
    weight = file.dequantized(file.constant(codes, np.uint8), 0.01, 7, np.uint8)
    found = explained(file.model(file.node("Conv", file.quantized("x"), weight)))
    kernels = rows(found, "Conv3", "QuantizedProduct of int8 and uint8")
    assert kernels["dot-avx2"] == "weight levels -7..248 do not fit 8 bits"
    assert kernels["portable"] is None


def test_attention_of_heads_that_share_keys() -> None:
    b = Builder()
    q, k, v = b.input(2, 6, 4, 8, name="q"), b.input(2, 1, 8, 4, name="k"), b.input(2, 1, 4, 8, name="v")
    found = explained(b.model(b.node("MatMul", b.node("Softmax", b.node("MatMul", q, k)), v)))
    reason = (
        "its operands are [2, 6, 4, 8] and [2, 1, 8, 4]; handled: matrices with the same leading axes, or one "
        "right matrix"
    )
    assert declines(found, "n0.MatMul") == {"product of two tensors": (reason, None)}
    assert [fact.node for fact in found.by_tvm] == ["n0.MatMul", "n2.MatMul"]
    assert rows(found, "n1.Softmax", "Softmax")["softmax-avx2"] is None


def test_attention_becomes_its_body() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[1, 2, 4, 8] q, float[1, 2, 4, 8] k, float[1, 2, 4, 8] v) => (float[1, 2, 4, 8] y)
        { y = Attention(q, k, v) }"""
    )
    found = explained(model)
    fact = found.by_tvm[0]
    assert (fact.node, fact.operator, fact.replaced) == ("y", "Attention", True)
    assert str(fact).startswith("y (Attention): replaced by the body of its definition: ")
    chosen = {fact.operator for fact in found.kernels if fact.reason is None}
    assert {"BatchMatMul", "Softmax"} <= chosen


def test_outputs_that_a_kernel_does_not_make() -> None:
    b = Builder()
    y, mean = b.node("LayerNormalization", b.input(2, 8), b.uniform(8), b.uniform(8), outputs=2)
    found = explained(b.model(y, mean))
    reason = "its output 'layernormalization0.1' is used; handled: the first 1"
    assert declines(found, "n0.LayerNormalization")["layer norm"] == (reason, None)
    assert found.by_tvm[0].replaced


def test_what_no_rule_is_for() -> None:
    b = Builder()
    found = explained(b.model(b.node("Elu", b.node("Div", b.input(4), b.node("Exp", "x")))))
    assert [fact.reason for fact in found.by_tvm] == [
        "no rule or kernel is for Exp",
        "no rule handles this Div",
        "no rule or kernel is for Elu",
    ]


# ---- what it holds ----


def test_a_decline_names_the_rule_that_took_the_node() -> None:
    b = Builder()
    y = b.node("Transpose", b.input(2, 3, 4), perm=[2, 0, 1])
    (fact,) = explained(b.model(y)).declined
    assert str(fact) == (
        "n0.Transpose (Transpose): rule 'transpose without data movement' declined: it moves elements; "
        "rule 'transpose' took it"
    )


def test_declines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "MOST_DECLINED", 3)
    monkeypatch.setattr(explanations, "LONGEST", 20)
    b = Builder()
    x = b.input(2, 3)
    for _ in range(9):
        x = b.node("Softmax", x, axis=0)
    found = explained(b.model(x))
    assert [fact.reason for fact in found.declined] == ["its axis is 0 of ..."] * 3
    assert str(found).endswith("more rules declined: the first 3 are listed")
    assert found.more


def test_an_explanation_is_of_one_compilation() -> None:
    b = Builder()
    model = b.model(b.node("Softmax", b.input(2, 3), axis=0))
    explanation = explained(model)
    with pytest.raises(UsageError, match=r"holds another compilation; give each compile a new Explanation\(\)"):
        lower_graph(model, AVX2, explanation=explanation)
    assert len(explanation.declined) == 1


def test_a_call_of_the_dialect_that_no_kernel_serves() -> None:
    b = Builder()
    found = explained(b.model(b.node("Exp", b.quantize(b.input(2, 4), low=-3000))))
    reason = "its levels -3000 to 127 are not a range of 8-bit integers"
    assert declines(found, "n0.Quantize")["codes"] == (reason, None)
    assert found.by_tvm[0].operator == "subbyte.Quantize"
    assert found.by_tvm[0].replaced


def test_a_function_that_is_not_ours_is_a_line_of_the_file() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "subbyte" : 7]> g (float[2, 4] x) => (float[2, 4] y)
        { y = subbyte.Binarize(x, x) }
        <domain: "subbyte", opset_import: ["" : 21]> Binarize (x, t) => (y) { y = Sub(x, t) }"""
    )
    line = (
        "file: function subbyte.Binarize: version 7 of the domain is not known, so it is inlined, and computed as the "
        "file defines it"
    )
    assert explained(model).lines()[0] == line
    explanation = Explanation()
    with pytest.raises(CompileError, match="version 7 of the domain is not known"):
        lower_graph(model, AVX2, strict=True, explanation=explanation)
    assert explanation.lines() == [line]


# ---- every rule ----


def test_every_rule_gives_an_outcome() -> None:
    """By its annotation, which mypy holds it to: True, a reason or nothing to do; never a plain False."""
    rules = [rule for _, rows in stages() for rule in rows] + registered("transposes")
    assert len(rules) > 100
    assert {rule.name for rule in rules if rule.rewrite.__annotations__.get("return") != "Outcome"} == set()


@pytest.mark.parametrize("seed", range(12))
def test_what_has_a_rules_pattern_is_rewritten_or_declined_with_a_reason(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX's own node cases are watched so in test_node_cases.py."""
    silent = watch(monkeypatch)
    assert_readable(explained(random_network(seed)))
    assert silent <= DONE


# ---- compile and the command line ----


def model_file(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(clipped(), path)
    return path


def test_the_report_holds_the_explanation_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, stored = model_file(tmp_path), {}
    for asked in (Explanation(), None):
        report = compile(path, tmp_path / "m.subbyte", explain=asked, replay=False)
        assert report.explanation is asked
        with open_bundle(tmp_path / "m.subbyte") as bundle:
            stored[asked is not None] = json.loads(bundle.read("report.json"))
        monkeypatch.setattr(Explanation, "rows_for", None)  # not called where nothing is asked for
    found = stored[True].pop("explanation")
    assert stored[True] == stored[False]
    assert found["in_float"][0]["reason"] == IN_FLOAT.split(": ", 2)[2]
    assert {"node", "operator", "kernel", "reason"} == set(found["kernels"][0])


def test_explain_prints_whole_lines_before_the_error_of_strict(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    arguments = ["compile", str(path), "--explain", "--strict", "-o", str(tmp_path / "m.subbyte")]
    result = CliRunner().invoke(main, arguments)
    assert IN_FLOAT in result.output.splitlines()
    assert result.exit_code == CompileError.exit_code
    assert result.output.index(IN_FLOAT) < result.output.index("1 layer would run in float")
    assert not (tmp_path / "m.subbyte").exists()


def test_explain_with_a_quiet_report(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    arguments = ["compile", str(path), "--explain", "--quiet", "--no-replay", "--target", "host"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert any(re.fullmatch(r"Conv4 .*: kernel '.*' chosen", line) for line in lines)
    assert lines[-1].startswith(str(path.with_suffix(".subbyte")))
