"""Codes and low-bit weights that a product of floats reads: reported here, and refused by `--strict`.

No fallback is silent: the reason is in the node, then in the plan and the compile report.
"""

from __future__ import annotations

from typing import Any

from subbyte.dialect.exactness import INTEGER_PRODUCTS
from subbyte.errors import CompileError
from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.recurrent import CELLS
from subbyte.tvm_kernels.rewrites.code_values import lacks_quantizer, path_from_codes, to_float
from subbyte.tvm_kernels.rewrites.float_levels import FEW_LEVELS, described, low_bit, trained
from subbyte.tvm_kernels.rewrites.run_time_products import CODES, INTEGERS, STEPS_AFTER_PRODUCT

PRODUCTS = {"Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm", "Einsum", "Attention", *CELLS}


def name_float_products(graph: Graph) -> None:
    """Give each product of floats that reads codes or low-bit weights its reason; run before `insert_conversions`."""
    changed = _changed_weights(graph)
    for node in graph.order():
        product = node.operator if isinstance(node.operator, ops.Product) and not node.operator.of_integers else None
        unserved = node.operator is None and node.op in PRODUCTS | INTEGER_PRODUCTS
        if node.fallback or not (product is not None or unserved):
            continue
        weights = [weight for name in node.inputs if name and (weight := graph.values[name].weight) is not None]
        coded = [name for name in node.inputs if name and path_from_codes(graph, name) is not None]
        if node.op in INTEGER_PRODUCTS:
            why = f": {node.declined[INTEGERS]}" if INTEGERS in node.declined else ""
            node.fallback = f"{node.op} goes through TVM, because no kernel computes its products{why}"
        elif weights:
            node.fallback = f"weights are {weights[0].format.name}, but no kernel is a {node.op} with them"
        elif (name := next((name for name in node.inputs if name in changed), None)) is not None:
            fmt, change = changed[name]
            node.fallback = f"weights are {fmt}, but '{change.name}' ({change.op}) in between is computed in float32"
        elif len(coded) > 1 or (coded and product is not None and product.inputs == 2):
            other = next((name for name in node.inputs if name and name != coded[0]), coded[0])
            why = "".join(f": {node.declined[rule]}" for rule in (STEPS_AFTER_PRODUCT, CODES) if rule in node.declined)
            node.fallback = f"'{coded[0]}' is quantized, but no kernel multiplies codes by '{other}'"
            node.fallback += why or ", made at run time"
        elif (levels := _float_levels(graph, node)) is not None:
            lacks = f"no kernel is a {node.op} with them"
            if FEW_LEVELS in node.declined:
                lacks = node.declined[FEW_LEVELS]
            elif product is not None and product.inputs == 1:
                lacks = f"its activation '{node.inputs[0]}' {lacks_quantizer(graph, node.inputs[0])}"
            node.fallback = f"weights are {described(levels)} in float32, but {lacks}"
        elif coded:
            source = _of_the_file(graph, node, coded[0])
            node.fallback = f"its activation '{source}' is quantized, but its weights are float32"


def _of_the_file(graph: Graph, product: Node, name: str) -> str:
    """An input of a product before the conversions that were added for it, which have its name."""
    while (made := graph.producer(name)) is not None and made.name == product.name:
        name = made.inputs[0]
    return name


def _changed_weights(graph: Graph) -> dict[str, tuple[str, Node]]:
    """The values that are computed from low-bit weights and constants alone: the format, and the node that reads it."""
    changed: dict[str, tuple[str, Node]] = {}
    for node in graph.order():
        values = [graph.values[name] for name in node.inputs if name]
        formats = [(value.weight.format.name, node) for value in values if value.weight is not None]
        formats += [changed[value.name] for value in values if value.name in changed]
        if formats and all(value.is_constant or value.name in changed for value in values):
            changed.update(dict.fromkeys(node.outputs, formats[0]))
    return changed


def _float_levels(graph: Graph, node: Node) -> LowBitTensor | None:
    """The levels of float weights that were dequantized before export, whichever of its inputs and axes has them."""
    if isinstance(node.operator, ops.Product) and isinstance(node.operator.right, ops.FloatWeight):
        found = low_bit(node.operator.right.values, 0)
        return found if found is not None and trained(found) else None
    places = slice(1, 3) if node.op in CELLS else slice(0, None if node.op == "Einsum" else 2)
    for data in [data for name in node.inputs[places] if (data := graph.constant_of(name)) is not None]:
        for axis in dict.fromkeys((0, 1, data.ndim - 1)) if data.ndim > 1 else ():
            found = low_bit(data, axis)
            if found is not None and trained(found):
                return found
    return None


def unserved_to_float(graph: Graph, features: frozenset[str]) -> None:
    """Turn every product with low-bit weights that has no row into one with float32 weights, with the reason."""
    for node in graph.order():
        product = node.operator
        if not isinstance(product, ops.Product) or product.weight is None:
            continue
        try:
            choose(product, features)
        except CompileError as error:
            if graph.explanation is not None:
                graph.explanation.rows_for(node, product, features)
            reason = str(error).split(": ", 1)[-1]
            _to_float(graph, node, product, reason)


def _to_float(graph: Graph, node: Node, product: ops.Product[Any, LowBitTensor], reason: str) -> None:
    if product.left.pad and any(getattr(product.geometry, "padding", ())):
        raise CompileError(f"no kernel for '{node.name}', and none in float pads with +1: {reason}")
    weights_alone = not product.of_integers
    if weights_alone:
        reason = f"weights are {product.right.format.name}, and no kernel multiplies floats by them: {reason}"
    node.operator = product.in_float()
    node.op, node.fallback = node.operator.kind, node.fallback or reason
    if not weights_alone:
        graph.set_inputs(node, [to_float(graph, node.inputs[0], node), *node.inputs[1:]])


def refuse(graph: Graph) -> None:
    """Raise CompileError naming every layer that fell back to float."""
    fallen = [node for node in graph.order() if node.fallback]
    if not fallen:
        return
    lines = [f"'{node.name}': {node.and_declines(node.fallback or '')}" for node in fallen]
    count = "1 layer" if len(lines) == 1 else f"{len(lines)} layers"
    raise CompileError(
        f"{count} would run in float:\n       "
        + ";\n       ".join(lines)
        + ".\n       Give these layers a format and an "
        "activation quantizer that a kernel serves, or compile without --strict to run them in float."
    )
