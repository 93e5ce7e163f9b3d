"""Architectures: shapes, sizes, options, and the form that binary networks want."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.quant import quantized_layers
from subbyte.models.untrained import untrained
from subbyte.models.zoo import (
    create,
    create_for,
    create_for_scheme,
    decoder,
    get_model,
    list_models,
    register_model,
    registry,
)

SIZES = {
    "mlp": [8, (3, 5)],
    "resnet8": [8, 28, (7, 9)],
    "resnet18": [8, 64],
    "ds_cnn": [(49, 10), 8, 28],
    "vit_micro": [8, 28],
    "deit_tiny": [32],
    "gru": [8, (3, 5)],
    "unet": [8, (12, 4)],
    "conv1d": [1, 13],
    "decoder": [1, 12],
}
LOGITS = {"unet": "nchw", "decoder": "ntc"}  # of each pixel, of each token; of the other models one for each input


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_every_model_gives_logits(name: str, size: int | tuple[int, int]) -> None:
    entry = get_model(name)
    shape = entry.shape(2, size)
    model = create_for(name, shape=shape, outputs=7).eval()
    with torch.no_grad():
        logits = model(entry.example(shape, 7, batch=3))
    expected = {"nchw": (3, 7, *shape[1:]), "ntc": (3, *shape, 7)}
    assert logits.shape == expected.get(LOGITS.get(name, ""), (3, 7))
    assert torch.isfinite(logits).all()


def test_every_registered_model_is_tested() -> None:
    assert set(SIZES) == set(list_models())


def test_parameter_counts_are_those_of_the_papers() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(create("resnet18", classes=1000, channels=3)) == 11_689_512  # torchvision's resnet18
    assert count(create("deit_tiny", classes=1000, channels=3)) == 5_717_416  # DeiT-Ti
    assert count(create("resnet8", classes=10, channels=3)) == 78_042
    assert count(create("ds_cnn", classes=12, channels=1)) == 23_180


def test_resnet18_at_224_halves_five_times() -> None:
    model = create("resnet18", channels=3, size=224).eval()
    with torch.no_grad():
        features = model.stages(model.stem(torch.zeros(1, 3, 224, 224)))
    assert features.shape == (1, 512, 7, 7)


@pytest.mark.parametrize(("name", "convolutions"), [("resnet8", 6), ("resnet18", 16)])
def test_binary_form_has_a_shortcut_around_every_convolution(name: str, convolutions: int) -> None:
    model = create_for_scheme(name, "binary", channels=1, size=28)
    assert not any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in model.modules())
    stages = [m for m in model.stages.modules() if isinstance(m, nn.Conv2d)]
    assert len(stages) == convolutions
    for convolution in stages:  # with all weights zero, the input still comes through
        nn.init.zeros_(convolution.weight)
    model.eval()
    first, second = torch.randn(2, 1, 1, 28, 28)
    assert not torch.allclose(model(first), model(second))


def test_options_given_by_name_win_over_the_preference_of_the_scheme() -> None:
    model = create_for_scheme("resnet8", "binary", channels=1, size=8, shortcut="block")
    assert any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in model.modules())
    assert any(isinstance(m, nn.PReLU) for m in model.modules())
    plain = create_for_scheme("resnet8", "ternary", channels=1, size=8)
    assert not any(isinstance(m, nn.PReLU) for m in plain.modules())


def test_the_shortcut_for_binary_networks_is_exact() -> None:
    """Maximum and copy: every value of a shortcut is bit for bit a value of its input."""
    model = create("resnet8", channels=1, size=9, shortcut="convolution").eval()
    unit = model.stages[1][0]
    nn.init.zeros_(unit.conv.weight)
    x = torch.rand(2, 16, 9, 9)
    y = unit(x)
    assert y.shape == (2, 32, 5, 5)
    assert torch.equal(y[:, :16], y[:, 16:])
    assert torch.isin(y, x).all()


def test_a_position_of_a_series_sees_its_neighbours_alone() -> None:
    model = create_for("conv1d", shape=(3, 40), outputs=5, depth=1, per_position=True).eval()
    x = torch.randn(1, 3, 40)
    changed = x.clone()
    changed[..., 20] += 1
    seen = (model(x) != model(changed)).any(1).flatten().nonzero().flatten().tolist()
    assert seen == list(range(15, 26))  # 3 of the stem's kernel of 7, and 1 of each kernel of 3


def test_a_segmentation_sees_details_and_surroundings() -> None:
    torch.manual_seed(0)
    model = create("unet", channels=1, size=16, classes=3).eval()
    x = torch.randn(1, 1, 16, 16)
    (by_pixel,) = torch.autograd.grad(model(x.requires_grad_())[0, 0, 8, 8], x)
    assert by_pixel[0, 0, 8, 8] != 0
    assert by_pixel[0, 0, 0, 0] != 0  # through the coarse levels
    with pytest.raises(UsageError, match="images of 6x16 cannot be halved 2 times"):
        create("unet", channels=1, size=(6, 16))


def test_logits_of_a_token_depend_on_it_and_on_those_before_alone() -> None:
    model = create_for("decoder", shape=(9,), outputs=20, width=16, depth=2).eval()
    tokens = torch.randint(20, (1, 9))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 20
    seen = (model(tokens) != model(changed)).any(-1)[0]
    assert seen.tolist() == [False] * 5 + [True] * 4
    torch.testing.assert_close(model(tokens[:, :6]), model(tokens)[:, :6])  # shorter windows, too


def test_attention_is_that_of_torch_with_shared_keys() -> None:
    attention = decoder.Attention(24, 6, 2, context=5)
    x = torch.randn(3, 5, 24)

    def heads(layer: nn.Module) -> torch.Tensor:
        values: torch.Tensor = layer(x)
        return values.reshape(3, 5, -1, 4).transpose(1, 2)

    query, key = (attention.rotary(heads(layer)) for layer in (attention.query, attention.key))
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, heads(attention.value), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(attention(x), attention.out(mixed.transpose(1, 2).reshape(3, 5, 24)))


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = decoder.Rotary(8, 30)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    products = rotary(query.expand(30, 8)) @ rotary(key.expand(30, 8)).T
    for distance in range(-29, 30):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    torch.testing.assert_close(products[0, 0], query @ key)
    assert products.diagonal(1)[0] != products.diagonal(2)[0]


def test_a_tied_head_stays_float_with_its_embedding_and_says_why() -> None:
    for tied in (True, False):
        model, _ = untrained("decoder", "ternary", size=4, width=16, depth=1, tied=tied)
        rows = {row.layer: row for row in model.quantization_report}
        assert rows["embedding"].note == "a table look-up is not a product"
        assert ("head" in quantized_layers(model)) != tied
        if tied:
            assert model.head.weight is model.embedding.weight
            assert rows["head"].note == "its weight is shared with 'embedding'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20}, "width 20 does not divide into 4 heads of an even number"),
        ({"kv_heads": 3}, "4 query heads do not divide among 3 key and value heads"),
        ({"context": 8}, "a window of 9 tokens is longer than the model's context of 8"),
        ({"depth": 0}, "option 'depth' is 0"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_for("decoder", shape=(9,), outputs=20, **options)


def test_list_models_takes_a_pattern() -> None:
    assert list_models("resnet*") == ["resnet18", "resnet8"]
    assert list_models("no such*") == []


def test_names_options_and_sizes_that_do_not_fit() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet8'"):
        create("resnet9", channels=1)
    with pytest.raises(UsageError, match=r"no option 'widht'.*width"):
        create("resnet8", channels=1, widht=8)
    with pytest.raises(UsageError, match="'none', expected one of: 'block', 'convolution'"):
        create("resnet8", channels=1, shortcut="none")
    with pytest.raises(UsageError, match="do not divide into patches of 4"):
        create("vit_micro", channels=1, size=30)
    with pytest.raises(UsageError, match="size must be"):
        create("resnet8", channels=1, size=(8, 0))
    with pytest.raises(UsageError, match="at least one class"):
        create("mlp", classes=0)


def test_register_refuses_a_name_taken_or_misspelt() -> None:
    with pytest.raises(RegistrationError, match="registered already"):
        register_model("mlp", summary="")
    with pytest.raises(RegistrationError, match="lower case"):
        register_model("My Net", summary="")
    with pytest.raises(RegistrationError, match="takes 'sound'; expected one of: image, series, tokens"):
        register_model("net", summary="", takes="sound")
    with pytest.raises(RegistrationError, match=r"its usual size must be \(length\), got \(8, 8\)"):
        register_model("net", summary="", takes="series", size=(8, 8))


def test_a_registered_model_is_created_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @register_model("one_layer", summary="one layer", size=(2, 2))
    def one_layer(*, classes: int, channels: int, size: tuple[int, int], bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes, bias=bias))

    assert create("one_layer", classes=3, channels=1)(torch.zeros(1, 1, 2, 2)).shape == (1, 3)
    assert get_model("one_layer").options == ("bias",)


def test_data_makes_a_model_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @register_model("bag", summary="sum of embeddings", size=(5,), takes="tokens")
    def bag(*, shape: tuple[int], outputs: int, width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Embedding(outputs, width), nn.Flatten(), nn.Linear(shape[0] * width, outputs))

    entry = get_model("bag")
    tokens = entry.example((6,), 11, batch=3)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, tokens.clamp(0, 10))
    assert create_for("bag", shape=(6,), outputs=11, width=2)(tokens).shape == (3, 11)
    assert entry.options == ("width",)
    assert list_models(takes="tokens") == ["bag", "decoder"]
    model, inputs = untrained("bag", "int8", size=6, classes=11)
    assert model(inputs).shape == (8, 11)
    with pytest.raises(UsageError, match=r"takes tokens \[length\] of int64, no images"):
        create("bag")
    with pytest.raises(UsageError, match=r"takes tokens .* the data has \[6\] of float32; models for such data: mlp"):
        create_for("bag", shape=(6,), outputs=11, dtype="float32")
    with pytest.raises(UsageError, match="no option 'wdith'"):
        create_for("bag", shape=(6,), outputs=11, wdith=2)
    with pytest.raises(UsageError, match=r"positive sizes and outputs, got \[6\] and 0"):
        create_for("bag", shape=(6,), outputs=0)


def test_data_of_an_image_makes_what_create_does() -> None:
    torch.manual_seed(0)
    made = create_for("resnet8", shape=(2, 8, 9), outputs=7, width=4)
    torch.manual_seed(0)
    other = create("resnet8", channels=2, size=(8, 9), classes=7, width=4)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))
    with pytest.raises(UsageError, match=r"takes image \[channels, height, width\] of float32, the data has \[2, 8\]"):
        create_for("resnet8", shape=(2, 8), outputs=7)


@pytest.mark.parametrize("scheme", ["float", "int4", "binary"])
def test_an_untrained_model_is_ready_to_export_and_leaves_the_random_state(scheme: str) -> None:
    state = torch.random.get_rng_state()
    model, images = untrained("ds_cnn", scheme, size=(9, 7), classes=3, batch=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert images.shape == (4, 1, 9, 7)
    assert not model.training
    assert bool(quantized_layers(model)) == (scheme != "float")
    with torch.no_grad():
        logits = model(images)
        again, same = untrained("ds_cnn", scheme, size=(9, 7), classes=3, batch=4)
        assert torch.equal(images, same)
        assert torch.equal(logits, again(images))
    assert logits.shape == (4, 3)
    assert logits.std() > 0
    with pytest.raises(UnknownNameError, match="Did you mean 'ds_cnn'"):
        untrained("ds_cn", scheme)
