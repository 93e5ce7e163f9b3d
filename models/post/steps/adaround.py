"""AdaRound: each weight is rounded up or down so that its layer's output stays near, not the weight itself.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020. Layer by layer in the order of
execution, on the inputs that the quantized layers before give. The weight is s clip(floor(w / s) + h(V), low, high)
with h(V) = clip(sigmoid(V) 1.2 - 0.1, 0, 1) (eq. 23), and V minimizes

    |W x - W~ x~|^2 / |W x - W_nearest x~|^2  +  regularization * mean(1 - |2 h(V) - 1|^beta)     (eq. 21, 24, 25)

where beta falls from 20 to 2 and the second term is left out in the first fifth. The paper has the sum of squared
errors and of the regularizer; here the error is divided by that of rounding to nearest and the regularizer is a mean,
so that one `regularization` serves layers of any unit and size. On three small networks for digits in 4-bit weights, 10
left a fourth of the error of the logits that 1 and 0.1 left half to all of (300 iterations, learning rate 0.05). A
layer for which the result is worse on the calibration inputs than rounding to nearest keeps that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.models.options import Count, Positive
from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.post.layer_values import execution_order, see_float, see_inputs
from subbyte.models.post.reporting import note, tracked
from subbyte.models.post.steps.register import step
from subbyte.models.quant import QuantizedProduct, Recipe, fake_quantized, quantized_layers
from subbyte.models.quant.estimators.learned_step import LearnedStepWeight

STRETCHED = (-0.1, 1.1)  # gamma and zeta
BETA = (20.0, 2.0)
WARM_UP = 0.2  # share of the iterations without the regularizer
MOST_VALUES = 1 << 26  # of a layer's inputs, and of its outputs, that are kept in memory: 256 MiB


@step("adaround", source="Nagel et al., Up or Down?, 2020, eq. 21 to 25", needs=(Calibration,), changes="weights")
def adaround(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    *,
    iterations: Count = 1000,
    learning_rate: Positive = 0.05,
    regularization: Positive = 10.0,
    batch: Count = 32,
    seed: int = 0,
) -> nn.Module:
    """each weight rounded up or down so that the layer's output changes least

    `batch`: samples of an iteration; `seed`: which. Raises QuantizationError where no layer has weights with a step.
    """
    layers, calls = quantized_layers(model), execution_order(model, batches[0])
    chosen = [name for name in calls if isinstance(layers[name].weight_quantizer, LearnedStepWeight)]
    if not chosen:
        raise QuantizationError(
            "step 'adaround': no layer has integer weights with a step of their own; leave it out, or take a scheme "
            "such as int4"
        )
    for name in calls:
        if name not in chosen:
            note(f"'{name}' has weights without a step of their own: adaround leaves it as it is")
    search = Search(iterations, learning_rate, regularization, batch)
    for name in tracked(chosen, "adaround", len(chosen)):
        problem = _problem(model, batches, layers[name], calls[name])
        with fake_quantized(model):
            levels = search(problem, torch.Generator().manual_seed(seed))
        quantizer = layers[name].weight_quantizer
        assert quantizer is not None
        with torch.no_grad():
            quantizer.latent().copy_(quantizer.dequantize(levels))
    return model


@dataclass(frozen=True)
class Problem:
    """A layer, its quantized inputs [N, ...] and the outputs [N, ...] of the float model."""

    layer: QuantizedProduct
    inputs: Tensor
    outputs: Tensor

    def error(self, weight: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """The mean squared error of the output with this weight."""
        y = self.layer.product(self.inputs[chosen], weight)
        if self.layer.bias is not None:
            y = y + self.layer.bias.detach().reshape(self.layer.channel_shape())
        return (y - self.outputs[chosen]).square().mean()


@dataclass(frozen=True)
class Search:
    """How V is found. The fields are the options of the step."""

    iterations: int
    learning_rate: float
    regularization: float
    batch: int

    def __call__(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """The levels of a layer's weight."""
        quantizer = problem.layer.weight_quantizer
        assert isinstance(quantizer, LearnedStepWeight)
        with torch.no_grad():
            w, scale = quantizer.latent().detach(), quantizer.expand(quantizer.scales(), quantizer.latent())
            floor, nearest = torch.floor(w / scale), quantizer.codes(w)
            start = float(problem.error(nearest * scale))
        if start == 0:
            return nearest

        def levels(up: Tensor) -> Tensor:
            return torch.clamp(floor + up, quantizer.low, quantizer.high)

        v = _before_sigmoid(w / scale - floor).requires_grad_()
        optimizer = torch.optim.Adam([v], self.learning_rate)
        count = len(problem.inputs)
        for iteration in tracked(range(self.iterations), "iterations of a layer", self.iterations):
            chosen = torch.randint(count, (min(self.batch, count),), generator=generator)
            up = rectified_sigmoid(v)
            loss = problem.error(levels(up) * scale, chosen) / start
            done = (iteration / self.iterations - WARM_UP) / (1 - WARM_UP)
            if done >= 0:
                beta = BETA[0] + (BETA[1] - BETA[0]) * done
                loss = loss + self.regularization * (1 - (2 * up - 1).abs().pow(beta)).mean()
            (v.grad,) = torch.autograd.grad(loss, v)
            optimizer.step()
        with torch.no_grad():
            found = levels((rectified_sigmoid(v) >= 0.5).to(w.dtype))
            return found if float(problem.error(found * scale)) < start else nearest


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V): 0 and 1 are reached at finite V."""
    low, high = STRETCHED
    return torch.clamp(torch.sigmoid(v) * (high - low) + low, 0, 1)


def _before_sigmoid(share: Tensor) -> Tensor:
    """The V whose h(V) is this share, 0 to 1."""
    low, high = STRETCHED
    return torch.logit((share - low) / (high - low))


def _problem(model: nn.Module, batches: Batches, layer: QuantizedProduct, calls: int) -> Problem:
    """What the layer gets and should give, for as many batches as MOST_VALUES holds."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for batch in batches:
        see_float(model, [batch], {layer: outputs.append})
        see_inputs(model, [batch], layer, inputs.append, calls)
        if max(sum(x.numel() for x in inputs), sum(y.numel() for y in outputs)) > MOST_VALUES:
            break
    return Problem(layer, torch.cat(inputs), torch.cat(outputs))
