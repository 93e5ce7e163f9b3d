"""`Run`: the whole configuration of a training run, as text. Its fields are the keywords of `train`, the options of
`subbyte train` and the lines of `run.yaml`.

To add a field: write one line here with its type, default and help, and read it where it takes effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from subbyte.errors import SubbyteError, UnknownNameError, UsageError
from subbyte.files import limits
from subbyte.files.plain_data import plain_data_line, read_plain_data
from subbyte.models.options import mistyped
from subbyte.models.quant.recipe import Recipe, Rule, as_recipe
from subbyte.models.quant.recipe_data import recipe_data, recipe_from_data
from subbyte.models.train.optimizers import OPTIMIZERS
from subbyte.models.train.schedules import get_schedule

CONFIGURATION = "run.yaml"
SCHEME = "ternary"  # of a run that says neither scheme nor recipe


def _setting(default: Any, says: str, *, within: str = "", path: str = "", changes: bool = False) -> Any:
    """A field: its default, its help; `within`, which numbers it takes; `path`, what its text names; `changes`,
    whether a run may resume with another value."""
    metadata = {"help": says, "within": within, "path": path, "changes": changes}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


_WITHIN: dict[str, tuple[Callable[[float], bool], str]] = {
    "positive": (lambda number: 0 < number < math.inf, "must be positive"),
    "not negative": (lambda number: 0 <= number < math.inf, "must be 0 or positive"),
    "share": (lambda number: 0 <= number < 1, "is a share in [0, 1)"),
    "share held out": (lambda number: 0 < number < 1, "is a share of the training set between 0 and 1"),
    "share of all steps": (lambda number: 0 <= number < 1, "is a share of all steps in [0, 1)"),
}


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how. `model` and `data` are None where they are objects of the caller's program.

    Raises UsageError for a value of another type, out of its range, or a name that is not registered.
    """

    model: str | None = _setting("resnet8", "Model of the zoo; see `subbyte models`.")
    data: str | None = _setting("digits", "Data set; see `subbyte data`.")
    scheme: str | None = _setting(None, f"How it is quantized; see `subbyte schemes`. Without a recipe: {SCHEME}.")
    epochs: int = _setting(15, "Passes over the training set.", within="positive", changes=True)
    out: str | None = _setting(None, "Folder for the checkpoint and the log.", path="folder", changes=True)
    task: str | None = _setting(None, "What is learned; that of the data set. See `subbyte tasks`.")
    task_options: Mapping[str, Any] = _setting({}, "An option of the task, e.g. horizon=8 of forecasting.")
    loss: str | None = _setting(
        None, "Sum of losses, e.g. 'ce + 0.5*kd(temperature=4)'; that of the task. See `subbyte losses`."
    )
    loss_options: Mapping[str, Any] = _setting({}, "An option of the loss, e.g. temperature=4 of kd.")
    teacher: str | None = _setting(None, "Checkpoint folder of the teacher, for distillation.", path="checkpoint")
    init: str | None = _setting(None, "Checkpoint folder to start from, e.g. the float model.", path="checkpoint")
    model_options: Mapping[str, Any] = _setting(
        {}, "An option of the model, e.g. width=32 of resnet8, hidden=64,32 of mlp (one width: hidden=64,)."
    )
    scheme_options: Mapping[str, Any] = _setting(
        {}, "An option of the scheme, e.g. group_size=32 of int4, activations=token of ternary, keep=none."
    )
    recipe: str | Sequence[Mapping[str, Any]] | None = _setting(
        None, "In place of a scheme: rules that choose that of each layer, or a YAML or JSON file of them.", path="any"
    )
    data_path: str | None = _setting(None, "Its files, for a data set that is not installed.", path="any", changes=True)
    data_options: Mapping[str, Any] = _setting({}, "An option of the data set, e.g. size=224 of imagefolder.")
    augment: bool = _setting(True, "Augment the training images as the data set says.")

    batch_size: int | None = _setting(
        None,
        "Samples of a step, of all devices together; 32 for data below 10,000 samples, else 128.",
        within="positive",
    )
    accumulate: int = _setting(1, "Parts of a step's samples that run one after the other.", within="positive")
    optimizer: str = _setting("adamw", f"{' or '.join(OPTIMIZERS)}.")
    learning_rate: float | None = _setting(None, "The largest; 2e-3 for adamw, 0.05 for sgd.", within="positive")
    weight_decay: float = _setting(1e-4, "Of the weights of products.", within="not negative")
    momentum: float = _setting(0.9, "Of sgd.", within="share")
    schedule: str = _setting("cosine", "How the learning rate falls: cosine, linear, step, constant, one-cycle.")
    schedule_options: Mapping[str, Any] = _setting({}, "An option of the schedule, e.g. gamma=0.1 of step.")
    warmup: float | None = _setting(
        None,
        "Share of the steps in which the rate rises from 0; 0.05, but 0 of one-cycle.",
        within="share of all steps",
    )
    clip: float | None = _setting(None, "Largest norm of the gradient of a step.", within="positive")
    ema: float | None = _setting(
        None, "Decay of an average of the weights, e.g. 0.999: it is the result.", within="share"
    )
    freeze: float | None = _setting(
        None, "Share of the steps after which learned steps and thresholds stay, e.g. 0.8.", within="share of all steps"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = _setting("32-true", "Of training; tests are in float32.")
    compile: bool = _setting(False, "Train through torch.compile.")
    seed: int = _setting(0, "Of weights, order of samples, augmentation and dropout.", within="not negative")

    keep: Literal["last", "best"] = _setting("last", "Which epoch's model is the result: the last, or the best one.")
    patience: int | None = _setting(
        None, "Epochs without a better score after which training stops.", within="positive", changes=True
    )
    held_out: float | None = _setting(
        None,
        "Share of the training set that epochs are scored on, e.g. 0.1; the test set is scored once then. 0.1 where an "
        "epoch is chosen (keep=best, patience).",
        within="share held out",
    )
    save_every: int | None = _setting(
        None,
        "Steps between saves of the state to resume from, beside that of each epoch.",
        within="positive",
        changes=True,
    )
    tensorboard: bool = _setting(False, "Write TensorBoard logs, too; needs tensorboard.", changes=True)

    accelerator: str = _setting("auto", "Lightning's accelerator: auto, cpu, gpu, ...", changes=True)
    devices: int | str | Sequence[int] = _setting("auto", "Lightning's devices: auto, or a number.", changes=True)
    strategy: str = _setting("auto", "Lightning's strategy: auto, ddp, fsdp, ...", changes=True)
    num_nodes: int = _setting(1, "Hosts that train together.", within="positive", changes=True)
    workers: int = _setting(0, "Processes that read ahead.", within="not negative", changes=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", _rules(self.recipe))
        for one in fields(self):
            object.__setattr__(self, one.name, _as_json(one.name, getattr(self, one.name)))
        if self.recipe is None and self.scheme is None:
            object.__setattr__(self, "scheme", SCHEME)
        if self.recipe is not None and (self.scheme is not None or self.scheme_options):
            given = "scheme_options" if self.scheme is None else f"scheme '{self.scheme}'"
            raise UsageError(f"a run with a recipe has no scheme of its own, got {given}; leave one of the two out.")
        wrong = mistyped(Run, {one.name: getattr(self, one.name) for one in fields(self)})
        if wrong:
            raise UsageError(f"run: {wrong}.")
        for one in fields(self):
            _check_number(one.name, getattr(self, one.name), one.metadata["within"])
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got '{self.optimizer}'.")
        schedule = get_schedule(self.schedule, self.schedule_options)
        if schedule.rises and self.warmup:
            raise UsageError(
                f"schedule '{self.schedule}' has its own rise; leave warmup out, or choose another schedule."
            )
        if "spawn" in self.strategy:
            raise UsageError(
                f"strategy '{self.strategy}' pickles the model, which torch's parametrizations refuse; use 'ddp'."
            )

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON has it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def as_text(self) -> str:
        """The content of `run.yaml`: a line for each field, with its help."""
        lines = {one.name: f"{one.name}: {plain_data_line(getattr(self, one.name))}" for one in fields(self)}
        rules = () if isinstance(self.recipe, str) else self.recipe or ()
        below = {"recipe": "".join(f"- {plain_data_line(rule)}\n" for rule in rules)}
        if rules:
            lines["recipe"] = "recipe:"
        width = max(len(line) for line in lines.values() if len(line) < 40)
        return "".join(
            f"{lines[one.name]:<{width}}  # {one.metadata['help']}\n{below.get(one.name, '')}" for one in fields(self)
        )


def read_run(file: str | Path) -> Run:
    """The run of a YAML file such as `run.yaml`; fields that it leaves out have their defaults.

    Raises UsageError for a file that is missing or no YAML, a field that there is none of, and a value that is none.
    """
    given = read_plain_data(file, limits.RUN_BYTES, "the configuration of a run (see `subbyte train --print-config`)")
    if not isinstance(given, dict):
        raise UsageError(f"{file}: it holds a {type(given).__name__}, expected fields such as `epochs: 15`.")
    return run_of(given, f"{file}: ")


def changed(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run with the given ones in their place: a recipe replaces a scheme, and the other way around."""
    kept = dict(fields)
    if given.get("recipe") is not None:
        kept |= {"scheme": None, "scheme_options": {}}
    elif given.get("scheme") is not None:
        kept |= {"recipe": None}
    return {**kept, **given}


def run_of(given: Mapping[str, Any], place: str = "") -> Run:
    """The run with these fields; raises UnknownNameError for a field that there is none of."""
    names = [one.name for one in fields(Run)]
    for name in given:
        if name not in names:
            raise UnknownNameError(f"{place}field of a run", str(name), names)
    try:
        return Run(**given)
    except UnknownNameError:
        raise
    except UsageError as error:
        raise UsageError(f"{place}{error}") from error


def differences(was: Run, now: Run) -> dict[str, str]:
    """What changed between two runs: a sentence for each field."""
    pairs = ((one.name, getattr(was, one.name), getattr(now, one.name)) for one in fields(Run))
    return {name: f"its {name} was {old!r} and now is {new!r}" for name, old, new in pairs if old != new}


def may_change(name: str) -> bool:
    """Whether a run may resume with another value of this field."""
    return next(bool(one.metadata["changes"]) for one in fields(Run) if one.name == name)


def _as_json(name: str, value: Any) -> Any:
    """The value as JSON gives it again: paths as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value)
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"run: {name} is {value!r}, expected numbers, text, lists and mappings of them.") from error


def _rules(given: Any) -> Any:
    """The rules of a recipe as plain data; None, and the name of a file, as they are."""
    if given is None or isinstance(given, (str, Path)):
        return given
    try:
        own = isinstance(given, Recipe) or (isinstance(given, Sequence) and any(isinstance(r, Rule) for r in given))
        return recipe_data(as_recipe(given) if own else recipe_from_data(given))
    except SubbyteError as error:
        raise UsageError(f"recipe: {error}") from error


def _check_number(name: str, value: Any, within: str) -> None:
    if not within or value is None:
        return
    holds, words = _WITHIN[within]
    if not holds(value):
        raise UsageError(f"{name} {words}, got {value}.")
