"""Graphs of one operator, drawn from the schemas of ONNX: what `compile` takes is right, the rest is refused by name.

Operator, dtypes, shapes, attributes, and which inputs are constants are drawn. Inputs are cast from dtypes that a model
may have as input, its outputs to those it may have as output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from engines import Case, judged
from onnx import TensorProto, helper, numpy_helper

from subbyte.onnx_files.attributes import check_attributes

OPSET = 21
LEFT_OUT = {
    # other types than tensors, subgraphs, random numbers, text
    *("If", "Loop", "Scan", "SequenceMap", "Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    *("RandomUniformLike", "Multinomial", "Dropout", "Optional", "OptionalGetElement", "OptionalHasElement"),
    *("ImageDecoder", "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"),
    *("SplitToSequence", "ConcatFromSequence", "Constant"),
}
# dtype of an operator's input or output -> what stands for it as an input or output of the model
PLAIN = {
    **dict.fromkeys(("float32", "uint8", "int8", "int32", "int64")),
    **dict.fromkeys(("float64", "float16", "bfloat16"), "float32"),
    **dict.fromkeys(("bool", "int16", "uint16", "uint32", "uint64"), "int32"),
}
NUMBERS = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in PLAIN if name != "bfloat16"}
NUMBERS["bfloat16"] = TensorProto.BFLOAT16
WORDS = {
    "auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
    "direction": ("LEFT", "RIGHT", "forward", "reverse", "bidirectional"),
    "mode": ("constant", "reflect", "edge", "wrap", "nearest", "linear", "cubic", "DCR", "CRD", "avg", "max"),
    "coordinate_transformation_mode": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "reduction": ("none", "add", "mul", "max", "min", "mean", "sum"),
    "approximate": ("none", "tanh"),
    "padding_mode": ("zeros", "border", "reflection"),
    "equation": ("ij,jk->ik", "...j,...j->...", "ij->ji", "ii->i", "ij,kj->ik"),
}
SPATIAL = ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "LpPool", "DeformConv")
NORMALIZE = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")


def prepare(folder: Path) -> list[onnx.defs.OpSchema]:
    """The operators."""
    return operators()


def case(state: list[onnx.defs.OpSchema], rng: np.random.Generator, folder: Path) -> str:
    """A graph, compiled and run."""
    drawn = draw(rng, state)
    return "no valid graph" if drawn is None else judged(drawn, folder)


# ---- drawing ----


def operators() -> list[onnx.defs.OpSchema]:
    """The operators of opset 21, by name."""
    newest: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= OPSET:
            known = newest.get(schema.name)
            if known is None or known.since_version < schema.since_version:
                newest[schema.name] = schema
    found = [s for s in newest.values() if not s.deprecated and s.name not in LEFT_OUT and "Sequence" not in s.name]
    return sorted(found, key=lambda schema: schema.name)


def draw(rng: np.random.Generator, schemas: Sequence[onnx.defs.OpSchema]) -> Case | None:
    """A graph of one of these operators; None where forty attempts made no valid one."""
    schema = schemas[int(rng.integers(len(schemas)))]
    for _ in range(40):
        drawn = _attempt(schema, rng)
        if drawn is not None:
            return drawn
    return None


def _attempt(schema: onnx.defs.OpSchema, rng: np.random.Generator) -> Case | None:
    types = {c.type_param_str: _element(c.allowed_type_strs, rng) for c in schema.type_constraints}
    if None in types.values():
        return None
    rank = (
        int(rng.integers(3, 5))
        if schema.name in SPATIAL
        else int(rng.choice([0, 1, 2, 3, 4], p=[0.1, 0.2, 0.3, 0.2, 0.2]))
    )
    base = tuple(int(n) for n in rng.integers(1, 6, rank))
    arrays: list[np.ndarray | None] = []
    for position, name, formal in _inputs(schema, rng):
        optional = formal.option == onnx.defs.OpSchema.FormalParameterOption.Optional
        if optional and rng.random() < 0.4:
            arrays.append(None)
            continue
        dtype = types.get(formal.type_str) or formal.type_str.removeprefix("tensor(").removesuffix(")").replace(
            "float", "float32" if formal.type_str == "tensor(float)" else "float"
        )
        if dtype not in NUMBERS:
            return None
        shape = _shape(schema.name, name, position, base, rng)
        arrays.append(_values(schema.name, name, dtype, shape, len(base), rng))
    while arrays and arrays[-1] is None:
        arrays.pop()
    attributes = dict(filter(None, (_attribute(schema, a, len(base), rng) for a in schema.attributes.values())))
    return _model(schema, arrays, attributes, rng)


def _element(allowed: Sequence[str], rng: np.random.Generator) -> str | None:
    """A dtype of a constraint, float32 more often than others."""
    names = [t[7:-1].replace("double", "float64") for t in sorted(allowed) if t.startswith("tensor(")]
    names = [{"float": "float32"}.get(name, name) for name in names]
    names = [name for name in names if name in NUMBERS]
    if not names:
        return None
    return "float32" if "float32" in names and rng.random() < 0.5 else str(rng.choice(names))


def _inputs(schema: onnx.defs.OpSchema, rng: np.random.Generator) -> list[tuple[int, str, Any]]:
    found = []
    for formal in schema.inputs:
        variadic = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        found += [(formal.name, formal)] * (int(rng.integers(1, 4)) if variadic else 1)
    return [(position, name, formal) for position, (name, formal) in enumerate(found)]


def _shape(op: str, name: str, position: int, base: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    rank = len(base)
    if name.lower() in ("axes", "shape", "repeats", "split", "starts", "ends", "steps", "sizes", "target_shape", "k"):
        return (int(rng.integers(1, max(2, rank + 1))),)
    if name == "pads":
        return (2 * rank,)
    if name == "scales":
        return (rank,)
    if position == 0 or op in ("MaxPool", "AveragePool", "LpPool"):
        return base
    if op in SPATIAL and name.lower() == "w" and rank > 2:
        kernel = tuple(int(rng.integers(1, 4)) for _ in base[2:])
        out, channels = int(rng.integers(1, 6)), base[1]
        return (channels, out, *kernel) if op == "ConvTranspose" else (out, channels, *kernel)
    if op in NORMALIZE and rank > 1:
        return (base[1],)
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm") and name.lower() == "b" and rank:
        return (*base[:-2], base[-1], int(rng.integers(1, 6)))
    if "scale" in name.lower() or "zero_point" in name.lower():
        return () if rng.random() < 0.6 or not rank else (base[min(1, rank - 1)],)
    kind = rng.random()
    if kind < 0.5:
        return base
    if kind < 0.7:
        return tuple(1 if rng.random() < 0.5 else n for n in base)
    return base[int(rng.integers(0, rank + 1)) :] if kind < 0.9 else ()


def _values(op: str, name: str, dtype: str, shape: tuple[int, ...], rank: int, rng: np.random.Generator) -> np.ndarray:
    name = name.lower()
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if name in ("scales", "roi"):
        return rng.choice([1.0, 2.0, 0.5, 1.5], shape).astype(dtype)
    if "scale" in name:
        return rng.choice([0.25, 0.1, 2.0, 1.0], shape).astype(dtype)
    if name in ("var", "input_var"):
        return rng.random(shape).astype(dtype) + np.asarray(0.5, dtype)
    if dtype.startswith(("float", "bfloat")):
        # halves and quarters have ties; no zeros where something is divided by them
        values = rng.integers(-16, 17, shape) / 4 if rng.random() < 0.5 else rng.standard_normal(shape) * 3
        return np.where((values == 0) & (op in ("Div", "Mod", "Pow")), 1.0, values).astype(NP.get(dtype, dtype))
    low, high = (0, 4) if dtype.startswith("u") else (-3, 4)
    if name == "pads":
        low, high = (-1, 3)
    elif name in ("axes", "axis", "indices"):
        low, high = (-rank, max(rank, 1))
    elif name in ("shape", "repeats", "sizes", "split", "k", "steps", "depth"):
        low, high = (1, 5)
    elif dtype in ("uint8", "int8") and rng.random() < 0.7:
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
    values = rng.integers(low, high, shape)
    return np.where((values == 0) & (op in ("Div", "Mod")), 1, values).astype(dtype)


NP = {"bfloat16": "float32"}  # as NumPy has it before the Cast


def _attribute(schema: onnx.defs.OpSchema, known: Any, rank: int, rng: np.random.Generator) -> tuple[str, Any] | None:
    kinds, name = onnx.defs.OpSchema.AttrType, known.name
    if not known.required and rng.random() < 0.5:
        return None
    spatial = max(rank - 2, 1)
    if name in ("kernel_shape", "strides", "dilations", "output_padding"):
        return name, [int(n) for n in rng.integers(0 if name == "output_padding" else 1, 3, spatial)]
    if name == "pads":
        return name, [int(n) for n in rng.integers(0, 2, 2 * spatial)]
    if name == "perm":
        return name, [int(n) for n in rng.permutation(rank)]
    if name == "axes":
        count = int(rng.integers(1, max(2, rank + 1)))
        return name, [int(n) for n in rng.permutation(max(rank, 1))[:count]]
    if name in ("axis", "batch_axis"):
        return name, int(rng.integers(-max(rank, 1), max(rank, 1)))
    if name in ("to", "dtype", "output_dtype", "stash_type"):
        return name, int(rng.choice(list(NUMBERS.values())))
    if name in WORDS:
        return name, str(rng.choice(WORDS[name]))
    if known.type == kinds.INT:
        return name, int(rng.integers(0, 3))
    if known.type == kinds.FLOAT:
        return name, float(rng.choice([0.5, 1.0, 0.01, 2.0]))
    return None


def _model(
    schema: onnx.defs.OpSchema, arrays: list[Any], attributes: dict[str, Any], rng: np.random.Generator
) -> Case | None:
    constant = rng.random() < 0.5  # the inputs after the first
    nodes, infos, initializers, feeds, names = [], [], [], {}, []
    cast = rng.random() < 0.8
    for position, array in enumerate(arrays):
        if array is None:
            names.append("")
            continue
        name, dtype = f"x{position}", str(array.dtype)
        names.append(name)
        if position and constant:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        stands = PLAIN.get(dtype) if cast else None
        given = f"{name}_given" if stands else name
        feeds[given] = np.asarray(array, stands) if stands else array
        infos.append(helper.make_tensor_value_info(given, NUMBERS[stands or dtype], array.shape))
        if stands:
            nodes.append(helper.make_node("Cast", [given], [name], to=NUMBERS[dtype]))
    try:
        count = int(rng.integers(schema.min_output, min(schema.max_output, 3) + 1)) if schema.max_output else 0
        outputs = [f"y{i}" for i in range(max(count, 1))]
        nodes.append(helper.make_node(schema.name, names, outputs, "node", **attributes))
        graph = helper.make_graph(
            nodes, "one", infos, [helper.make_empty_tensor_value_info(o) for o in outputs], initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        check_attributes(model)  # ONNX dies of some
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception:  # what is no ONNX is no case
        return None
    del model.graph.output[:]
    for output in inferred.graph.output:
        kind = output.type.tensor_type
        if not output.type.HasField("tensor_type") or not kind.elem_type:
            return None
        dtype = next((name for name, number in NUMBERS.items() if number == kind.elem_type), None)
        if dtype is None:
            return None
        stands = PLAIN.get(dtype) if cast else None
        if stands:
            model.graph.node.append(
                helper.make_node("Cast", [output.name], [f"{output.name}_cast"], to=NUMBERS[stands])
            )
            kind.elem_type, output.name = NUMBERS[stands], f"{output.name}_cast"
        model.graph.output.append(output)
    label = f"{schema.name} {[None if a is None else f'{a.dtype}{list(a.shape)}' for a in arrays]} {attributes}"
    half = "float16" in label  # or bfloat16
    return Case(model, feeds, label + (", constants" if constant else ""), half)
