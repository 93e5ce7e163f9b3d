"""From an ONNX file to a plan: the stages of the rewrite table, in order, then layout, kernels and memory.

    foreign           files of other exporters                  rewrites/foreign.py
    canonical form    one pattern for each computation          rewrites/canonical_form.py, integers.py,
                                                                quantized_values.py
    products          convolutions and matrix products, pools   rewrites/products.py,
                                                                run_time_products.py, pools.py, operators/
    epilogues         elementwise nodes, fused into kernels     rewrites/epilogues.py
    transposes        after the layout is known                 operators/permute.py
    binarized inputs  quantizers fused into a chosen kernel     rewrites/binarized_inputs.py
    indices           range checks of run-time indices          operators/check_indices.py

To add a rule, add a row to the stage's `RULES`; docs/lowering.md shows an example. The rule that creates a new operator
is in the operator's own file (rewrites/register.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from subbyte.errors import CompileError
from subbyte.onnx_files.loader import OnnxFile, Source, naming
from subbyte.tvm_kernels import layout, precision
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.graph import Graph
from subbyte.tvm_kernels.onnx_model import load_model
from subbyte.tvm_kernels.operators import check_indices
from subbyte.tvm_kernels.read_graph import read_graph
from subbyte.tvm_kernels.rewrites import (
    binarized_inputs,
    canonical_form,
    code_values,
    epilogues,
    foreign,
    integers,
    pools,
    products,
    quantized_values,
    run_time_products,
)
from subbyte.tvm_kernels.rewrites.pattern import Rule, apply
from subbyte.tvm_kernels.rewrites.register import Stage, registered
from subbyte.tvm_kernels.states import set_states, with_states

if TYPE_CHECKING:
    from subbyte.tvm_kernels.explanation import Explanation
    from subbyte.tvm_kernels.plan import Plan

_TABLES: tuple[tuple[Stage, list[Rule]], ...] = (
    ("foreign", [*foreign.RULES, *canonical_form.NORMS]),
    ("canonical form", [*canonical_form.RULES, *integers.RULES, *quantized_values.RULES, *run_time_products.STEPS]),
    ("products", [*products.RULES, *run_time_products.RULES, *pools.RULES, *products.OF_FLOAT_WEIGHTS]),
    ("epilogues", epilogues.RULES),
)


def stages() -> list[tuple[Stage, list[Rule]]]:
    """The stages in order, each with the rows of its table and the rules from the files of operators."""
    return [(stage, [*rules, *registered(stage)]) for stage, rules in _TABLES]


def lower(model: Source, features: frozenset[str], *, strict: bool = False, name: str | None = None) -> Plan:
    """The plan of a model for a CPU with these features.

    Raises UsageError, ModelError for an invalid file, and CompileError for a layer that cannot be compiled; with
    `strict` also for a low-bit layer that would be computed in float32, and for a function with the name of a dialect
    function and another definition.
    """
    from subbyte.tvm_kernels.assembly import assemble

    name = name_of(model) if name is None else name
    return assemble(lower_graph(model, features, strict=strict, name=name), features)


def name_of(model: Source) -> str:
    """The name of a compiled model: that of its file, or the graph's name if it is in memory."""
    if isinstance(model, OnnxFile):
        return str(model.model.graph.name) if model.path is None else _text(model.path.stem)
    return str(model.graph.name) if isinstance(model, onnx.ModelProto) else _text(Path(model).stem)


def _text(name: str) -> str:
    """A file's name as Unicode, which Python under an ASCII locale, or a name that is no UTF-8, does not give."""
    return os.fsencode(name).decode("utf-8", "replace")


def lower_graph(
    model: Source,
    features: frozenset[str] | None = None,
    *,
    strict: bool = False,
    name: str | None = None,
    explanation: Explanation | None = None,
) -> Graph:
    """The graph of kernels and remaining ONNX nodes, before code generation; `interpret` can run it.

    With `features`, low-bit products that no kernel row supports become float products here. `explanation` records what
    declines, also where this raises.
    """
    from subbyte.tvm_kernels import fallback

    graph = _read(model, name, strict, explanation)
    _rewrite(graph)
    working_on("choosing layouts")
    if features is not None:
        from subbyte.tvm_kernels.expand import expand

        while expand(graph):
            _rewrite(graph)
        fallback.unserved_to_float(graph, features)
    if explanation is not None:
        explanation.falls_back(graph)
    if strict:
        fallback.refuse(graph)
    layout.assign(graph)
    apply(graph, registered("transposes"))
    if features is not None:
        binarized_inputs.into_products(graph, features)
    check_indices.at_run_time(graph)
    graph.notes.extend(precision.what_stays(graph))
    return graph


def _rewrite(graph: Graph) -> None:
    from subbyte.tvm_kernels import fallback

    working_on("choosing the types of floats")
    precision.to_float32(graph)
    check_indices.constants(graph)
    for stage, rules in stages():
        working_on(f"stage '{stage}'")
        apply(graph, rules)
        if stage == "products":
            fallback.name_float_products(graph)
            code_values.insert_conversions(graph)


def _read(model: Source, name: str | None, strict: bool, explanation: Explanation | None) -> Graph:
    notes: list[str] = []
    file = with_states(model)
    loaded = load_model(file, notes)
    if explanation is not None:
        explanation.notes.extend(notes)
    if strict and notes:
        raise CompileError(f"{'; '.join(notes)}. Export the model again, or compile without --strict")
    with naming(file.path):
        graph = read_graph(loaded, name)
        set_states(graph, file)
    graph.notes.extend(notes)
    if explanation is not None:
        explanation.follow(graph)
    return graph
