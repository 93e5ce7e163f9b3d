"""What parameter_groups says of a model: which parameters decay, and the factor of each learning rate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from subbyte.errors import QuantizationError
from subbyte.models.quant import HasParameterGroups, ParameterGroup, parameter_groups, quantize, quantized_layers
from subbyte.models.zoo import create


def groups_of(*modules: nn.Module) -> list[dict[str, Any]]:
    return parameter_groups(*modules, learning_rate=0.5, weight_decay=0.1)


@pytest.mark.parametrize("scheme", ["float", "int4", "ternary", "binary", "pow2"])
def test_only_weights_of_products_decay(scheme: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 3))
    quantized = quantize(model, scheme)
    weights, rest = groups_of(quantized)
    assert [tuple(p.shape) for p in weights["params"]] == [(4, 1, 3, 3), (3, 144)]
    assert (weights["lr"], weights["weight_decay"], rest["lr"], rest["weight_decay"]) == (0.5, 0.1, 0.5, 0.0)
    assert {*weights["params"], *rest["params"]} == set(quantized.parameters())
    assert len(weights["params"]) + len(rest["params"]) == len(list(quantized.parameters()))


def test_a_class_token_and_positions_do_not_decay() -> None:
    model = create("vit_micro", classes=3, channels=1, size=(8, 8))
    weights, rest = groups_of(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {"class_token", "positions"} <= {names[id(p)] for p in rest["params"]}
    assert all(names[id(p)].endswith("weight") and p.dim() >= 2 for p in weights["params"])


def test_a_quantizer_says_at_which_rate_its_parameters_and_its_weight_learn() -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "int4")
    first = quantized_layers(model)["0"]
    quantizer, latent = first.weight_quantizer, first.weight_quantizer.latent()
    assert isinstance(latent, nn.Parameter)
    steps = tuple(quantizer.parameters())

    def slower() -> tuple[ParameterGroup, ...]:
        return (ParameterGroup((latent,), decays=False, rate=0.25), ParameterGroup(steps, decays=True, rate=2.0))

    quantizer.parameter_groups = slower  # type: ignore[method-assign]
    found = {p: (group["lr"], group["weight_decay"]) for group in groups_of(model) for p in group["params"]}
    assert found[latent] == (0.125, 0.0)
    assert [found[step] for step in steps] == [(1.0, 0.1)] * len(steps)
    assert found[quantized_layers(model)["1"].weight_quantizer.latent()] == (0.5, 0.1)  # type: ignore[index]
    torch.optim.SGD(groups_of(model)).step()


def test_frozen_shared_and_parametrized_parameters() -> None:
    shared = nn.Linear(3, 3)
    frozen = nn.Linear(3, 3).requires_grad_(False)
    model = nn.Sequential(shared, frozen, shared, weight_norm(nn.Linear(3, 2)))
    weights, rest = groups_of(model, shared)
    assert [id(p) for p in weights["params"]] == [id(shared.weight)]  # magnitude and direction are no weights
    assert len(rest["params"]) == 4
    assert groups_of(frozen) == []


def test_the_same_model_has_its_groups_in_the_same_order() -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "int4")
    again = copy.deepcopy(model)
    names, others = ({id(p): n for n, p in m.named_parameters()} for m in (model, again))
    assert [[names[id(p)] for p in g["params"]] for g in groups_of(model)] == [
        [others[id(p)] for p in g["params"]] for g in groups_of(again)
    ]


class Centers(HasParameterGroups):
    """A module outside of the model that is trained with it, as a loss may be."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        return (ParameterGroup((self.table,), rate=10.0),)


def test_two_modules_that_disagree_about_a_parameter_are_refused() -> None:
    centers = Centers(torch.zeros(2, 3))
    assert groups_of(centers) == [{"params": [centers.table], "lr": 5.0, "weight_decay": 0.0}]
    other = HasParameterGroups()
    other.table = centers.table
    with pytest.raises(QuantizationError, match=r"\[2, 3\].*agree"):
        groups_of(centers, other)
    with pytest.raises(QuantizationError, match="rate"):
        ParameterGroup((), rate=-1.0)
