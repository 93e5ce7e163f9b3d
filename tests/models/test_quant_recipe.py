"""Recipes: which rule decides a layer, what is refused, and that a recipe is the same after it was written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError, RegistrationError, SubbyteError, UnknownNameError, UsageError
from subbyte.files import limits
from subbyte.models import Config, load_checkpoint, save_checkpoint
from subbyte.models.quant import (
    AbsMean,
    LearnedStep,
    Recipe,
    Rule,
    Scheme,
    as_recipe,
    combine,
    get_scheme,
    quantize,
    quantized_layers,
    read_recipe,
    recipe_data,
    recipe_from_data,
    recipe_text,
    register_activations,
    register_weights,
)
from subbyte.models.zoo import create


class Net(nn.Module):
    """A convolution, two blocks of two linear layers, an output; and a table, which is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.stem = nn.Conv1d(4, 4, 1)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem(x).mean(-1)
        for block in self.blocks:
            y = block["down"](torch.relu(block["up"](y)))  # type: ignore[index]
        result: Tensor = self.head(y)
        return result


EXAMPLE = torch.randn(2, 4, 3)
LAYERS = ("stem", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")


def weights_by(*rules: Rule) -> dict[str, str]:
    """The format of each layer's weights under a recipe."""
    model = quantize(Net(), rules, example=EXAMPLE)
    return {row.layer: row.weights for row in model.quantization_report}  # type: ignore[union-attr]


# ---- which rule decides ----


def test_the_first_rule_that_matches_a_layer_decides() -> None:
    found = weights_by(
        Rule("int8", match="first"),
        Rule("pow2", name="blocks.1.*"),
        Rule("int4", name="*.up"),
        Rule("float", name="head"),
        Rule("ternary"),
    )
    expected = ("int8", "int4", "ternary", "pow2_4", "pow2_4", "float")
    assert found == {"table": "float", **dict(zip(LAYERS, expected, strict=True))}


def test_rules_by_type_sensitivity_and_several_conditions() -> None:
    found = weights_by(
        Rule("int4", type="Linear", name="blocks.0.*"),
        Rule("int8", sensitivity={"head": 0.5, "blocks.1.up": 0.1, "stem": 0.1000001}, above=0.1),
        Rule("float", type="Embedding"),
        Rule("ternary"),
    )
    expected = ("int8", "int4", "int4", "ternary", "ternary", "int8")
    assert found == {"table": "float", **dict(zip(LAYERS, expected, strict=True))}


def test_a_scheme_is_a_recipe_of_one_rule_after_that_of_first_and_last() -> None:
    assert as_recipe(get_scheme("ternary", keep=None)).rules == (Rule("ternary"),)
    kept = as_recipe("ternary")
    assert kept.name == "ternary"
    assert kept.rules == (Rule(combine("int8", "int8"), match="first-and-last"), Rule("ternary"))
    found = weights_by(*kept.rules)
    assert [found[name] for name in LAYERS] == ["int8", *["ternary"] * 4, "int8"]
    assert weights_by(*as_recipe(get_scheme("int4", keep=3)).rules)["stem"] == "int3"
    assert as_recipe("float").is_float
    assert not kept.is_float


def test_two_halves_combine_by_name() -> None:
    scheme = combine("int4", "int8", per="token", group_size=4)
    layers = quantized_layers(quantize(Net(), scheme, example=EXAMPLE))
    assert {layer.weight_quantizer.granularity.name for layer in layers.values()} == {"group"}
    assert layers["head"].activation_quantizer.granularity.name == "token"
    assert combine("ternary", "binary").label == "ternary weights, binary activations"
    assert combine("float", None).is_float


# ---- what is refused ----


def rules(*given: Any) -> list[Any]:
    return [*given, {"rest": True, "scheme": "ternary"}]


REFUSED: dict[str, tuple[Any, str]] = {
    "no list": ({"rest": True}, "a recipe is a list of rules"),
    "empty": ([], "has no rules"),
    "too long": ([{}] * (limits.RECIPE_RULES + 1), "at most 1000"),
    "no mapping": (["ternary"], "rule 1: expected a mapping"),
    "unknown key": (rules({"nmae": "x", "scheme": "int8"}), "rule 1: unknown key 'nmae'. Did you mean 'name'"),
    "no scheme": (rules({"name": "x"}), "rule 1: it has no scheme"),
    "no condition": (rules({"scheme": "int8"}), "rule 1: it has no condition"),
    "rest and name": (rules({"rest": True, "name": "x", "scheme": "int8"}), "rest and a condition"),
    "rest false": (rules({"rest": False, "scheme": "int8"}), "rest is False, expected true"),
    "name of a number": (rules({"name": 3, "scheme": "int8"}), "name is 3, expected a text"),
    "unknown place": (rules({"match": "frist", "scheme": "int8"}), "unknown place 'frist'. Did you mean 'first'"),
    "table without above": (rules({"sensitivity": {"head": 1.0}, "scheme": "int8"}), "both `sensitivity` and `above`"),
    "table of texts": (rules({"sensitivity": {"head": "1"}, "above": 1, "scheme": "int8"}), "from layer to number"),
    "NaN": (rules({"sensitivity": {"head": float("nan")}, "above": 1, "scheme": "int8"}), "finite"),
    "unknown scheme": (rules({"name": "x", "scheme": "ternery"}), "rule 1: unknown scheme 'ternery'. Did you mean"),
    "unknown option": (rules({"name": "x", "scheme": {"name": "int4", "group": 3}}), "option of scheme 'int4' 'group'"),
    "keep": (rules({"name": "x", "scheme": {"name": "int4", "keep": 8}}), "match: first-and-last"),
    "unknown weights": (rules({"name": "x", "scheme": {"weights": "int9"}}), "unknown weight quantizer 'int9'"),
    "option of neither": (rules({"name": "x", "scheme": {"weights": "pow2", "per": "token"}}), "unknown option"),
    "two ways": (rules({"name": "x", "scheme": {"name": "int4", "weights": "int4"}}), "leave one out"),
    "typed option": (
        rules({"name": "x", "scheme": {"weights": "int4", "group_size": "4"}}),
        "option 'group_size' is '4', expected one of: int, None",
    ),
    "rest first": (
        [{"rest": True, "scheme": "int8"}, {"name": "x", "scheme": "int4"}],
        r"rule 2 \(name x: int4\).*rule 1",
    ),
    "twice": (
        rules({"name": "x", "scheme": "int8"}, {"name": "x", "scheme": "int4"}),
        r"rule 2 .*rule 1 \(name x: int8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_recipe_is_refused_with_its_rule(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(QuantizationError, match=message):
        recipe_from_data(data)


UNFIT: dict[str, tuple[list[Rule], str]] = {
    "no such name": ([Rule("int8", name="block.*")], r"rule 1 \(name block\.\*: int8\) matches no layer.*did you mean"),
    "no such type": ([Rule("int8", type="Conv2d")], "of the types Conv1d, Embedding, Linear; did you mean 'Conv1d'"),
    "no such layer": ([Rule("int8", sensitivity={"heat": 1.0}, above=0)], "names 'heat'.*did you mean 'head'"),
    "contradiction": (
        [Rule("int4", name="head"), Rule("int8", match="last")],
        r"rule 2 \(last.*contradicts rule 1 \(name h",
    ),
    "cannot take it": ([Rule("int4", type="Embedding")], r"rule 1 \(type Embedding.*'table'.*look-up"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_recipe_that_does_not_fit_the_model_is_refused_before_anything_changes(case: str) -> None:
    given, message = UNFIT[case]
    model = Net()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(QuantizationError, match=message):
        quantize(model, [*given, Rule("ternary")], example=EXAMPLE)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_layer_without_a_rule_is_refused_and_equal_rules_may_overlap() -> None:
    with pytest.raises(QuantizationError, match=r"no rule of the recipe is for 'stem'.*rest"):
        quantize(Net(), [Rule("int8", type="Linear")], example=EXAMPLE)
    one = quantize(
        nn.Sequential(nn.Linear(4, 4)), [Rule("int8", match="first"), Rule("int8", match="last"), Rule("pow2")]
    )
    assert quantized_layers(one)["0"].weight_quantizer.format.name == "int8"
    with pytest.raises(QuantizationError, match="expected a recipe"):
        as_recipe([Rule("int8"), "int4"])  # type: ignore[list-item]


class Refusing:
    """A configuration that refuses every layer."""

    format_name = "int8"

    def weight_quantizer(self, weight: Tensor) -> Any:
        raise QuantizationError("it takes no weight")


def test_a_layer_that_a_scheme_refuses_is_named() -> None:
    with pytest.raises(QuantizationError, match="'stem' cannot take the scheme 'int8': it takes no weight"):
        quantize(Net(), Scheme(Refusing(), LearnedStep(8)), example=EXAMPLE)


def test_a_layer_excluded_by_a_rule_may_be_one_that_cannot_be_quantized() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 2))
    found = quantize(model, [Rule("float", type="Conv2d"), Rule("int8")], example=torch.randn(1, 1, 4, 4))
    assert list(quantized_layers(found)) == ["2"]


# ---- written and read ----

WRITTEN = Recipe(
    (
        Rule("int8", match="first-and-last"),
        Rule(combine("ternary", "int8", per="token"), name="blocks.0.*", type="Linear"),
        Rule(get_scheme("int4", group_size=4), sensitivity={"blocks.1.up": 0.25, "head": -1.0}, above=0.125),
        Rule(combine("pow2", "int8")),
    )
)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_recipe_is_the_same_after_it_was_written_and_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"r{suffix}"
    file.write_text(json.dumps(recipe_data(WRITTEN)) if suffix == ".json" else recipe_text(WRITTEN))
    assert read_recipe(file) == WRITTEN


def test_a_recipe_reads_like_a_decision(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "- {match: first-and-last, scheme: int8}  # comment\n"
        '- {name: "blocks.0.*", scheme: {weights: ternary, activations: int8, per: token}}\n'
        "- {rest: true, scheme: {weights: {name: int4, group_size: 4}, activations: int8}}\n"
    )
    first, blocks, rest = read_recipe(file).rules
    assert (first.match, first.scheme) == ("first-and-last", Rule("int8").scheme)
    assert isinstance(blocks.scheme.weights, AbsMean)
    assert rest.scheme.alike(get_scheme("int4", group_size=4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {rest: true, scheme: int8, scheme: int4}", "'scheme' is given twice"),
        ("- &a {rest: true, scheme: int8}\n- *a", "refers to another part"),
        ("- !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("- {1: true, scheme: int8}", "key 1, expected a text"),
        ("[" * 100_000, "is not a recipe"),
        ("- {name: x", "is not a recipe"),
        ("rest: true", "list of rules"),
        ("\ud7ff\x00", "is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for make in (Path.mkdir, lambda path: path.write_bytes(b"\xff"), lambda path: path.write_bytes(b" " * (1 << 21))):
        path = tmp_path / f"r{len(list(tmp_path.iterdir()))}.json"
        make(path)
        with pytest.raises(UsageError, match=path.name):
            read_recipe(path)
    with pytest.raises(UsageError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_a_scheme_made_of_objects_is_not_written() -> None:
    with pytest.raises(QuantizationError, match=r"made of objects.*combine"):
        recipe_data(as_recipe(Scheme(AbsMean(), LearnedStep(8))))


def test_a_checkpoint_stores_its_recipe(tmp_path: Path) -> None:
    recipe = [Rule("int8", match="first"), Rule(combine("ternary", "int8", per="token"), name="*")]
    config = Config("mlp", "recipe", (1, 4, 4), 3, {"hidden": [5]}, recipe=tuple(recipe_data(as_recipe(recipe))))
    model = quantize(create("mlp", classes=3, channels=1, size=(4, 4), hidden=[5]), recipe, torch.zeros(1, 1, 4, 4))
    images = torch.randn(6, 1, 4, 4)
    model(images)
    save_checkpoint(tmp_path, model, config)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == config
    assert torch.equal(loaded.model(images), model.eval()(images))
    description = tmp_path / "checkpoint.json"
    description.write_text(description.read_text().replace('"ternary"', '"ternery"'))
    with pytest.raises(SubbyteError, match=r"recipe of the checkpoint: rule 2: .*'ternery'"):
        load_checkpoint(tmp_path)


# ---- the registers ----


def test_the_registers_refuse_an_incomplete_entry() -> None:
    def nameless() -> Any:
        return AbsMean()

    def untyped(factor=1) -> Any:  # type: ignore[no-untyped-def]
        """An option without a type."""
        return AbsMean()

    def other_half() -> Any:
        """Activations given as weights."""
        return object()

    for make, message in ((nameless, "docstring"), (untyped, "'factor'"), (other_half, "weight_quantizer")):
        with pytest.raises(RegistrationError, match=message):
            register_weights("new")(make)
    with pytest.raises(RegistrationError, match="twice"):
        register_activations("int8")(other_half)
    assert "new" not in register_weights.makers
    with pytest.raises(UnknownNameError, match="option of this scheme"):
        combine("ternary", "int8", group_size=3)
