"""The register of the dialect: every function is whole and computes its reference, and an incomplete one is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from subbyte.dialect import function as register
from subbyte.dialect.function import (
    Call,
    Exactness,
    Function,
    PackedWeights,
    Quantizer,
    Rescale,
    all_functions,
    find,
    function_of,
    get,
    output_shapes,
)
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from subbyte.errors import ExportError, ModelError, RegistrationError, UnknownNameError

FUNCTIONS = {function.name: function for function in all_functions()}
Array = np.ndarray[Any, Any]


def one_call(function: Function, inputs: tuple[Array, ...]) -> onnx.ModelProto:
    """A model that is one call with all of its inputs given at run time, but for those that are integers: constants."""
    names, results = list(function.proto.input), list(function.proto.output)
    constants = [
        onnx.numpy_helper.from_array(a, n) for a, n in zip(inputs, names, strict=True) if a.dtype != np.float32
    ]
    given = [
        helper.make_tensor_value_info(n, 1, a.shape)
        for a, n in zip(inputs, names, strict=True)
        if a.dtype == np.float32
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in results]
    node = helper.make_node(function.name, names, results, "call", domain=DOMAIN)
    graph = helper.make_graph([node], "one_call", given, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[function.proto])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_a_function_is_its_reference_in_every_engine(name: str, seed: int) -> None:
    """And its outputs have the shapes that its rule says."""
    function = FUNCTIONS[name]
    inputs = tuple(np.asarray(array) for array in function.example(np.random.default_rng(seed)))
    expected = function.reference(*inputs)
    assert [array.dtype for array in expected] == [np.float32] * len(function.proto.output)
    shapes = function.shapes(Call(tuple(array.shape for array in inputs), inputs))
    assert list(shapes) == [array.shape for array in expected]
    assert function.integers == bool(np.all(expected[0] == np.rint(expected[0])))
    model = one_call(function, inputs)
    feeds = {n: a for n, a in zip(function.proto.input, inputs, strict=True) if a.dtype == np.float32}
    found = [ReferenceEvaluator(model).run(None, feeds)]
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, feeds))
    for results in found:
        for got, wanted in zip(results, expected, strict=True):
            assert got.shape == wanted.shape
            if function.exactness is Exactness.BIT_EXACT:
                np.testing.assert_array_equal(got, wanted)
            else:
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_shapes_of_a_call() -> None:
    assert output_shapes("QuantizePerToken", [(2, 3, 5)], [None]) == ((2, 3, 5), (2, 3, 1))
    with pytest.raises(ExportError, match=r"subbyte\.QuantizePerToken takes x, and is called with 2 inputs"):
        output_shapes("QuantizePerToken", [(2, 3, 5), ()], [None, None])
    with pytest.raises(UnknownNameError, match="Did you mean 'Quantize'"):
        output_shapes("Quantise", [()], [None])


def test_names_need_no_library() -> None:
    """Models are trained without onnx."""
    code = "import sys, subbyte.dialect.names; assert not {'onnx', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


PARTS = [part.name for part in fields(Function) if part.name not in ("name", "earlier")]


@pytest.mark.parametrize("part", PARTS)
def test_a_function_that_lacks_a_part_is_refused(part: str) -> None:
    given = {each: getattr(get("Quantize"), each) for each in PARTS if each != part}
    with pytest.raises(RegistrationError, match=f"function subbyte.Frob lacks its '{part}'"):
        register.register(Function(name="Frob", **given))
    assert find("Frob") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Quantize is registered twice"),
        ({"name": "Frob"}, "its 'body' defines Quantize"),
        ({"name": "Frob", "body": "Frob (x) => (y) {"}, "its 'body' is not ONNX text"),
        ({"name": "Frob", "version": DOMAIN_VERSION + 1}, f"but the domain has 1 to {DOMAIN_VERSION}"),
        ({"name": "DecodeInt4"}, "DecodeInt4 is registered twice"),
        (
            {"name": "Frob", "body": "Frob (x) => (y) { y = Add(x, z) }"},
            "its 'body' reads 'z', which is neither an input",
        ),
        ({"name": "Frob", "body": "Frob (x) => (z) { y = Abs(x) }"}, "its 'body' reads 'z', which is neither an input"),
        ({"name": "Frob it"}, "its 'name' is 'Frob it', expected a name in letters"),
        ({"name": "Frob", "version": True}, "its 'version' is 'True', expected an integer"),
        ({"name": "Frob", "summary": ""}, "its 'summary' is '', expected a sentence"),
        ({"name": "Frob", "body": None}, "its 'body' is 'None', expected ONNX text"),
        ({"name": "Frob", "body": "Frob (x) => (y) { y = Frobnicate(x) }"}, "its 'body' has Frobnicate, expected"),
        ({"name": "Frob", "body": "Frob (x) => (y) { y = subbyte.Lookup(x) }"}, "its 'body' has subbyte.Lookup"),
        (
            {"name": "Frob", "role": "nonsense"},
            "its 'role' is 'nonsense', expected a Quantizer, PackedWeights",
        ),
        ({"name": "Frob", "role": Quantizer("int8")}, "its 'role' is .*Quantizer.*expected a Quantizer"),  # type: ignore[arg-type]
        ({"name": "Frob", "role": PackedWeights("int8", True)}, "its 'role' is .*PackedWeights.*expected a Quantizer"),  # type: ignore[arg-type]
        ({"name": "Frob", "shapes": (1, 2)}, r"its 'shapes' is '\(1, 2\)', expected a function of a Call"),
        ({"name": "Frob", "reference": None}, "its 'reference' is 'None', expected a function of the inputs"),
        ({"name": "Frob", "exactness": "exact"}, "its 'exactness' is 'exact', expected a member of Exactness"),
        ({"name": "Frob", "in_float": "body"}, "its 'in_float' is 'body', expected a Rescale, Dequantized or Body"),
        ({"name": "Frob", "finite": 1}, "its 'finite' is '1', expected True or False"),
        ({"name": "Frob", "macs": 0}, "its 'macs' is '0', expected a function of a Call"),
        ({"name": "Frob", "example": ()}, r"its 'example' is '\(\)', expected a function of a random generator"),
        ({"name": "Frob", "earlier": ("Frob",)}, "its 'earlier' is .* expected pairs of a version and a body"),
        ({"name": "Frob", "energy": {"frob": 1}}, "its 'energy' is 1 of operation 'frob': expected a positive number"),
        ({"name": "Frob", "energy": {"int32 add": -1}}, "its 'energy' is -1 of operation 'int32 add'"),
        ({"name": "Frob", "energy": 2}, "its 'energy' is 2: expected a mapping of operations to counts"),
    ],
)
def test_a_wrong_part_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistrationError, match=words):
        register.register(replace(get("Quantize"), **changes))
    assert find("Frob") is None


@pytest.mark.parametrize(
    ("meaning", "words"),
    [
        (Rescale(factor=1), "multiplies by input 1, expected one of the 1 inputs"),
        (Rescale(factor=-1), "multiplies by input -1, expected one of the 1 inputs"),
        (Rescale(ones=(1,)), r"has outputs \(1,\) equal to 1, expected some of the 1 outputs"),
    ],
)
def test_a_rescale_by_an_input_that_is_not_there_is_refused(meaning: Rescale, words: str) -> None:
    body = "Frob (x) => (y) { y = Abs(x) }"
    with pytest.raises(RegistrationError, match=f"its 'in_float' {words}"):
        register.register(replace(get("Quantize"), name="Frob", body=body, in_float=meaning))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"example": lambda random: 5}, "its 'example' fails on its example: TypeError: 'int' object is not iterable"),
        ({"example": lambda random: ()}, "its 'example' has 0 inputs, its body x, inverse_step, low, high"),
        ({"reference": lambda *inputs: 1 / 0}, "its 'reference' fails on its example: ZeroDivisionError"),
        ({"reference": lambda *inputs: ()}, "its 'reference' returns , expected float32 for each of"),
        ({"reference": lambda x, *_: (x.astype(np.float64),)}, "its 'reference' returns float64, expected float32"),
        ({"shapes": lambda call: 5}, "its 'shapes' fails on its example: TypeError"),
        ({"shapes": lambda call: ((1,),)}, r"its 'shapes' of the example are \[\(1,\)\], but its 'reference' returns"),
        ({"macs": lambda call: 0.5}, "its 'macs' of the example is 0.5, expected an integer"),
    ],
)
def test_a_part_that_fails_on_the_example_is_refused(changes: dict[str, Any], words: str) -> None:
    body = get("Quantize").body.replace("Quantize", "Frob")
    with pytest.raises(RegistrationError, match=f"function subbyte.Frob: {words}"):
        register.register(replace(get("Quantize"), **{"name": "Frob", "body": body, **changes}))
    assert find("Frob") is None


def test_bodies_of_earlier_versions_are_checked() -> None:
    body = "Frob (x) => (y) { y = Abs(x) }"
    changes: dict[str, Any] = {"name": "Frob", "body": body, "in_float": Rescale(), "earlier": ((1, "nonsense"),)}
    with pytest.raises(RegistrationError, match="its 'body' is not ONNX text"):
        register.register(replace(get("Quantize"), **changes))
    with pytest.raises(RegistrationError, match="expects a Function, got 'Frob'"):
        register.register("Frob")  # type: ignore[arg-type]


def test_a_summary_may_have_quotes() -> None:
    assert replace(get("Quantize"), summary='the "code"').proto.doc_string == 'the "code"'


def test_bodies_of_earlier_versions_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version has the body that the last version up to it gave."""
    monkeypatch.setattr(register, "DOMAIN_VERSION", 4)
    older = get("Binarize").body.replace("plus", "one")
    function = replace(get("Binarize"), version=3, earlier=((2, older), (2, older.replace("one", "up"))))
    assert [len(function.bodies(version)) for version in range(1, 6)] == [0, 2, 1, 1, 0]
    assert function.bodies(2)[0].node[0].output[0] == "one"
    assert function.bodies(4) == (function.proto,)


def test_an_unknown_function_is_an_error_that_names_its_node() -> None:
    assert function_of(helper.make_node("Frob", ["x"], ["y"], "layer")) is None
    with pytest.raises(ModelError, match=rf"node 'layer' calls {DOMAIN}.Frob, .* neither in version {DOMAIN_VERSION}"):
        function_of(helper.make_node("Frob", ["x"], ["y"], "layer", domain=DOMAIN))
    with pytest.raises(UnknownNameError, match="Did you mean 'DecodeInt4'"):
        get("DecodeInt44")
