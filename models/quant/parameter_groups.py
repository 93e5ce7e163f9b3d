"""Which parameters of a model decay, and how fast each learns: the groups that an optimizer takes.

A quantizer says it of what it trains (`parameter_groups()`), and so may any module that derives from
`HasParameterGroups`. Of the rest of a model the weights of products decay, and nothing else: no bias, norm, class token
or table of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from subbyte.errors import QuantizationError


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that learn alike: whether weight decay pulls at them, and the factor of the learning rate."""

    parameters: tuple[nn.Parameter, ...]
    decays: bool = False
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < float("inf"):
            raise QuantizationError(
                f"a group's rate is the factor of its learning rate, 0 or more and finite, got {self.rate}"
            )


class HasParameterGroups(nn.Module):
    """Mixin of a module that says how what it trains learns; unless it overrides this, without decay, at rate 1."""

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The groups of its parameters; what it leaves out learns as in any other module."""
        return (ParameterGroup(tuple(self.parameters())),)


# Modules whose parameters of two axes or more are weights of a product (a look-up is a product with one-hot rows).
PRODUCTS = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


def parameter_groups(*modules: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The groups for a torch optimizer of all parameters of `modules` that are trained, each in one group, once.

    A group is {"params", "lr", "weight_decay"}: `lr` is `learning_rate` times the group's factor, `weight_decay` is 0
    where it does not decay. The groups that decay come first, faster ones before slower ones, and within a group the
    order is that of `named_parameters`: an optimizer's state fits the same model again. Empty where nothing is trained.

        optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=2e-3, weight_decay=1e-4))

    Raises QuantizationError where two modules ask for different things of one parameter.
    """
    asked = _asked(modules)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for parameter, product in _parameters(modules):
        if parameter in seen or not parameter.requires_grad:
            continue
        seen.add(parameter)
        groups.setdefault(asked.get(parameter, (product, 1.0)), []).append(parameter)
    return [
        {"params": groups[key], "lr": learning_rate * key[1], "weight_decay": weight_decay if key[0] else 0.0}
        for key in sorted(groups, reverse=True)
    ]


def _asked(modules: tuple[nn.Module, ...]) -> dict[nn.Parameter, tuple[bool, float]]:
    """What modules say of parameters: (decays, rate)."""
    asked: dict[nn.Parameter, tuple[bool, float]] = {}
    for module in (inner for outer in modules for inner in outer.modules()):
        for group in module.parameter_groups() if isinstance(module, HasParameterGroups) else ():
            for parameter in group.parameters:
                said = (group.decays, group.rate)
                if asked.setdefault(parameter, said) != said:
                    raise QuantizationError(
                        f"a {type(module).__name__} asks for (decays, rate) = {said} of a parameter "
                        f"{list(parameter.shape)}, another module for {asked[parameter]}; make their "
                        "parameter_groups() agree"
                    )
    return asked


def _parameters(modules: tuple[nn.Module, ...]) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every parameter, in the order of `named_parameters`, and whether it is the weight of a product."""
    for outer in modules:
        inside = dict(outer.named_modules())
        for path, owner in inside.items():
            if isinstance(owner, ParametrizationList):  # `layer.parametrizations.weight` has the weight of `layer`
                layer = inside[path.rpartition(".")[0].rpartition(".")[0]]
                product = isinstance(layer, PRODUCTS) and owner.is_tensor  # else it is made of several
            else:
                product = isinstance(owner, PRODUCTS)
            for parameter in owner.parameters(recurse=False):
                yield parameter, product and _is_matrix(parameter)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() >= 2
