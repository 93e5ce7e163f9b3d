"""Products that make their signs themselves: zero differing bits in the outputs and in the signs that they store."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import differing
from agreement import row as row_of
from products import CONVOLUTIONS, signs, weight
from test_amx import SHAPES as PRODUCTS
from this_cpu import needs

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.kernels.tir.execute import Executable, host_target
from subbyte.tvm_kernels.kernels.x86.amx import FEATURES, AmxProduct
from subbyte.tvm_kernels.kernels.x86.binary import bytes_of
from subbyte.tvm_kernels.kernels.x86.instructions import VNNI_512
from subbyte.tvm_kernels.operators import (
    Binarized,
    Bits,
    Codes,
    Combine,
    Conv2d,
    Epilogue,
    MatMul,
    Product,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

ROW = "binarize-amx"
needs_tiles = needs(FEATURES)
SHAPES = {
    name: geometry
    for name, geometry in (PRODUCTS | CONVOLUTIONS).items()
    if signs(geometry).channels % 32 == 0 and getattr(geometry, "stride", (1, 1)) == (1, 1)
}


def binarized(geometry: MatMul | Conv2d, epilogue: Epilogue | None = None, *, each: bool) -> Product:
    """A product and its quantizer, with a threshold for all channels or for each."""
    channels = signs(geometry).channels
    threshold = np.random.default_rng(5).standard_normal(channels if each else 1).astype(np.float32)
    quantizer = Binarized(ToBits(threshold, Bits(channels)))
    return Product("layer", quantizer, weight(geometry, "binary"), geometry, epilogue or Epilogue())


def activations(op: Product) -> np.ndarray:
    """Normal numbers, with both zeros, both infinities, a NaN and the threshold itself among them."""
    geometry = op.geometry
    shape = (
        (geometry.rows, geometry.depth)
        if isinstance(geometry, MatMul)
        else (geometry.batch, geometry.height, geometry.width, geometry.channels)
    )
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, np.float32(op.left.quantizer.threshold[0])]
    return x


@needs_tiles
@pytest.mark.parametrize("each", [False, True], ids=["one threshold", "a threshold for each channel"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_outputs_and_signs(name: str, each: bool) -> None:
    """Built whether its tiles are full or not."""
    op = binarized(SHAPES[name], each=each)
    built = AmxProduct(op, VNNI_512, bytes_of(op)).build()
    x = activations(op)
    got = Executable(built, host_target(FEATURES))([x])
    wanted = operators.run(op, [x])
    assert len(got) == 2
    for g, w in zip(got, wanted, strict=True):
        assert np.array_equal(g.reshape(w.shape), w)


@needs_tiles
def test_every_form_of_output_and_a_residual_through_the_row() -> None:
    rng = np.random.default_rng(3)
    steps = (Scale(constant(rng.random(96))), Combine("add", "other"))
    stores = (
        ToFloat(),
        ToCodes(0.01, Codes(-128, 127, 128)),
        ToBits(constant(rng.standard_normal(96)), Bits(96)),
    )
    op = binarized(MatMul(150, 128, 96), Epilogue(steps, stores), each=True)
    other = rng.standard_normal((150, 96)).astype(np.float32)
    assert differing(op, ROW, [activations(op)], other=other) == 0


def test_the_row_refuses_what_it_would_get_wrong() -> None:
    row = row_of(Product, ROW)
    narrow = binarized(MatMul(197, 40, 384), each=False)
    strided = binarized(Conv2d(1, 28, 28, 128, 128, (1, 1), (2, 2)), each=False)
    assert row.refuses(binarized(MatMul(197, 384, 384), each=False)) is None
    assert row.refuses(narrow) == "40 channels are not whole words of 32"
    assert row.refuses(strided) == "a stride skips activations, whose bits would not be stored"
    assert (
        row.refuses(binarized(MatMul(5, 384, 384), each=False)) == "5 positions are too few to unpack the weights for"
    )
