"""The energy of a function of the dialect is counted by the operator that its rule makes."""

from __future__ import annotations

import numpy as np
import pytest
from hand_graphs import Builder
from lowered import kernels

from subbyte.dialect.function import Function, PackedWeights, all_functions
from subbyte.tvm_kernels.lowering import lower_graph

OF_VALUES = [function for function in all_functions() if not isinstance(function.role, PackedWeights)]


@pytest.mark.parametrize("function", OF_VALUES, ids=lambda function: function.name)
def test_the_operator_of_a_call_counts_the_energy_of_the_function(function: Function) -> None:
    x, *parameters = function.example(np.random.default_rng(0))
    b = Builder()
    value = b.input(*x.shape)
    if np.array_equal(x, np.rint(x)):  # codes
        low = 0 if x.min() >= 0 else -128
        value = b.quantize(value, 1.0, low, low + 255)
    constants = [b.constant(parameter, parameter.dtype) for parameter in parameters]
    outputs = b.node(function.name, value, *constants, domain="subbyte", outputs=len(function.proto.output))
    first = outputs if isinstance(outputs, str) else outputs[0]
    made = [node.operator.per_element for node in kernels(lower_graph(b.model(first)))]
    assert any(function.energy.items() <= dict(counted).items() for counted in made), made
