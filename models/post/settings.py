"""`PostTraining`: all that a post-training quantization is asked for, as text. Its fields are the keywords of
`subbyte.quantize` and the options of `subbyte quantize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from subbyte.errors import FormatError, QuantizationError, UnknownNameError, UsageError
from subbyte.models.options import mistyped
from subbyte.models.post.calibration import Calibration
from subbyte.models.post.steps import Call, calls_of
from subbyte.models.quant import Recipe, as_recipe, get_scheme, read_recipe


@dataclass(frozen=True)
class PostTraining:
    """How a float model is quantized without training.

    Raises UsageError for a value of another type or out of its range, UnknownNameError for a name that is not
    registered.
    """

    scheme: str = "int8"  # see `subbyte schemes`
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Any = None  # in place of a scheme: a Recipe, its rules, or a YAML or JSON file
    data: str | None = None  # by default what the checkpoint was trained on
    data_path: str | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None  # of the training set; 512, or all where there are fewer
    batch_size: int = 64
    seed: int = 0  # of which samples
    calibrator: str = "mse"  # of activations: "percentile(percent=99.9)"
    weights: str = "mse"  # calibrator of weights
    steps: Sequence[str] = ()  # in their order: ("adaround(iterations=500)", "bias-correction")

    def __post_init__(self) -> None:
        if isinstance(self.steps, str):
            object.__setattr__(self, "steps", (self.steps,))
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        wrong = mistyped(PostTraining, given)
        if wrong:
            raise UsageError(f"quantize: {wrong}.")
        for name in ("samples", "batch_size"):
            if given[name] is not None and given[name] < 1:
                raise UsageError(f"quantize: {name} is {given[name]}, expected at least 1.")
        if self.recipe is not None and (self.scheme_options or self.scheme != "int8"):
            raise UsageError("quantize: a recipe and a scheme are given; leave one out.")
        calls_of(self.steps)
        _ = self.calibration

    @property
    def calibration(self) -> Calibration:
        """The calibrators."""
        return Calibration(self.calibrator, self.weights)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The steps."""
        return calls_of(self.steps)

    def chosen_recipe(self) -> Recipe:
        """The recipe, or that of the scheme; raises UsageError for one that quantizes nothing."""
        if isinstance(self.recipe, (str, Path)):
            recipe = read_recipe(self.recipe)
        elif self.recipe is not None:
            recipe = as_recipe(self.recipe)
        else:
            try:
                recipe = as_recipe(get_scheme(self.scheme, **self.scheme_options))
            except UnknownNameError:
                raise
            except (FormatError, QuantizationError) as error:
                raise UsageError(f"scheme '{self.scheme}': {error}") from error
        if recipe.is_float:
            raise UsageError("quantize: the recipe leaves every layer in float; take another, e.g. int8.")
        return recipe

    def record(self, data: str, samples: int) -> dict[str, Any]:
        """What a checkpoint says of how it was quantized, as JSON has it."""
        settings = asdict(self) | {"data": data, "samples": samples, "steps": list(self.steps)}
        for name in ("recipe", "scheme", "scheme_options", "data_path"):  # the checkpoint says these itself
            del settings[name]
        return settings


def settings_of(given: Mapping[str, Any]) -> PostTraining:
    """The settings with these fields; raises UnknownNameError for a field that there is none of."""
    names = [one.name for one in fields(PostTraining)]
    for name in given:
        if name not in names:
            raise UnknownNameError("keyword of quantize", name, names)
    return PostTraining(**given)
