"""How operators become Relax where TVM's own importer lacks them, or takes them wrong: the table {(domain, operator)}.

    @converter("subbyte", "UnpackBits")
    def unpack_bits(builder, inputs, attributes): ...    # -> relax.Expr

What reads by indices gets them checked and counted from the start (rewrites/indices.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret

Converter = Callable[[Any, Sequence[Any], dict[str, Any]], Any]

CONVERTERS: dict[tuple[str, str], Converter] = {}


def converter(domain: str, op: str) -> Callable[[Converter], Converter]:
    """Register how an operator becomes Relax."""

    def add(function: Converter) -> Converter:
        CONVERTERS[domain, op] = function
        return function

    return add


@converter("subbyte", "UnpackBits")
def unpack_bits(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Packed signs uint32 [..., words] to float32 -1 and +1 [..., channels]."""
    channels = int(attributes["channels"])

    def compute(words: Any) -> Any:
        def element(*at: Any) -> Any:
            word = words(*at[:-1], at[-1] // 32)
            bit = (word >> (at[-1] % 32).astype("uint32")) & tvm.tirx.const(1, "uint32")
            return bit.astype("float32") * tvm.tirx.const(2, "float32") - tvm.tirx.const(1, "float32")

        return te.compute([*words.shape[:-1], channels], element, name="signs")

    return builder.call_te(compute, inputs[0], primfunc_name_hint="unpack_bits")


@converter("", "Silu")
def silu(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x * sigmoid(x) of what has no axes, which no kernel takes."""
    return relax.op.nn.silu(inputs[0])


@converter("subbyte", "Part")
def part(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """A run of elements of the flat input, under the output's shape."""
    shape, start = list(attributes["shape"]), int(attributes["start"])

    def compute(whole: Any) -> Any:
        def element(*at: Any) -> Any:
            place = te.const(start, "int64")
            stride = 1
            for index, size in zip(reversed(at), reversed(shape), strict=True):
                place = place + index * stride
                stride *= size
            indices = []
            for size in reversed([int(d) for d in whole.shape]):
                indices.append(place % size)
                place = place // size
            return whole(*reversed(indices))

        return te.compute(shape, element, name="part")

    return builder.call_te(compute, inputs[0], primfunc_name_hint="part")


# ---- float16, as its bits: arithmetic that every target has ----

OUT_ELEMENTWISE = 4  # TVM's kOutEWiseFusable: what follows may join, but neither what is in front nor another of these


def _float(bits: Any) -> Any:
    return reinterpret("float32", bits)


def _word(value: int) -> Any:
    return tvm.tirx.const(value, "uint32")


def _once(dtype: str, value: Any, of: Callable[[Any], Any]) -> Any:
    """`of(value)`, in which the value is computed once: TVM writes an expression out wherever it stands."""
    name = tvm.tirx.Var("once", dtype)
    return tvm.tirx.Let(name, value, of(name))


@converter("subbyte", "ToFloat16")
def to_float16(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """float32 to the bits of the nearest float16, ties to even; infinity from 65520 on."""

    def half(bits: Any) -> Any:
        size = bits & _word(0x7FFFFFFF)
        odd = (size >> _word(13)) & _word(1)
        normal = (size - _word(0x38000000) + _word(0xFFF) + odd) >> _word(13)
        # Below 2^-14 float16 counts in steps of 2^-24, which is what float32 rounds to next to 0.5.
        small = reinterpret("uint32", _float(size) + tvm.tirx.const(0.5, "float32")) - _word(0x3F000000)
        finite = tvm.tirx.Select(size < _word(0x38800000), small, normal)
        finite = tvm.tirx.Select(size >= _word(0x477FF000), _word(0x7C00), finite)
        number = tvm.tirx.Select(size > _word(0x7F800000), _word(0x7E00), finite)
        return (number | ((bits >> _word(16)) & _word(0x8000))).astype("uint16")

    def compute(x: Any) -> Any:
        def element(*at: Any) -> Any:
            return _once("uint32", reinterpret("uint32", x(*at)), half)

        return te.compute(x.shape, element, name="to_float16")

    # One in a kernel: in a chain of several TVM's passes take time that grows exponentially.
    return builder.call_te(
        compute, inputs[0], primfunc_name_hint="to_float16", primfunc_attrs={"op_pattern": OUT_ELEMENTWISE}
    )


@converter("subbyte", "FromFloat16")
def from_float16(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """float32 of the bits of float16: exact."""

    def whole(wide: Any) -> Any:
        size, sign = wide & _word(0x7FFF), (wide & _word(0x8000)) << _word(16)
        normal = (size << _word(13)) + _word(0x38000000)
        small = reinterpret("uint32", size.astype("float32") * tvm.tirx.const(2.0**-24, "float32"))
        number = tvm.tirx.Select(size < _word(0x400), small, normal)
        number = tvm.tirx.Select(size >= _word(0x7C00), (size << _word(13)) | _word(0x7F800000), number)
        return _float(number | sign)

    def compute(bits: Any) -> Any:
        return te.compute(
            bits.shape, lambda *at: _once("uint32", bits(*at).astype("uint32"), whole), name="from_float16"
        )

    return builder.call_te(compute, inputs[0], primfunc_name_hint="from_float16")


@converter("", "Concat")
def concat(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """What has no elements is left out: TVM loses the length of the axis by it."""
    parts = [part for part in inputs if all(int(size) for size in part.ty.shape)] or list(inputs[:1])
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis=int(attributes["axis"]))


# ---- what reads by indices ----


def _rank(tensor: Any) -> int:
    return len(tensor.shape)


@converter("", "Gather")
def gather(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i.., b..] = x[a.., indices[i..], b..], where `axis` axes stand in front."""

    def compute(x: Any, indices: Any) -> Any:
        axis = int(attributes.get("axis", 0)) % _rank(x)
        last = axis + _rank(indices)
        shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
        return te.compute(shape, lambda *at: x(*at[:axis], indices(*at[axis:last]), *at[last:]), name="gather")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather")


@converter("", "GatherElements")
def gather_elements(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i, b..] = x[a.., indices[a.., i, b..], b..]."""

    def compute(x: Any, indices: Any) -> Any:
        axis = int(attributes.get("axis", 0)) % _rank(x)
        return te.compute(indices.shape, lambda *at: x(*at[:axis], indices(*at), *at[axis + 1 :]), name="elements")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather_elements")


@converter("", "GatherND")
def gather_nd(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i.., b..] = x[a.., indices[a.., i.., 0], indices[a.., i.., 1], .., b..]."""

    def compute(x: Any, indices: Any) -> Any:
        batch, last, coordinates = int(attributes.get("batch_dims", 0)), _rank(indices) - 1, int(indices.shape[-1])
        shape = [*indices.shape[:-1], *x.shape[batch + coordinates :]]

        def element(*at: Any) -> Any:
            return x(*at[:batch], *(indices(*at[:last], axis) for axis in range(coordinates)), *at[last:])

        return te.compute(shape, element, name="gather_nd")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather_nd")


@converter("", "OneHot")
def one_hot(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """On where the index is the place along `axis`; -1 is the last place. ONNX: "Any entries in the 'indices' input
    tensor with values outside the range [-depth, depth-1] will result in one-hot representation with all 'off_value'
    values", and indices "of non-integer type [...] will be casted to int64 before use"."""
    depth = int(inputs[1].value.numpy().reshape(-1)[0])

    def compute(indices: Any, values: Any) -> Any:
        axis = int(attributes.get("axis", -1)) % (_rank(indices) + 1)

        def element(*at: Any) -> Any:
            index = indices(*at[:axis], *at[axis + 1 :])
            index = tvm.tirx.trunc(index) if "float" in str(index.ty) else index.astype("int64")
            index = tvm.tirx.Select(index < 0, index + tvm.tirx.const(depth, str(index.ty)), index)
            return tvm.tirx.Select(index == at[axis].astype(str(index.ty)), values(1), values(0))

        return te.compute([*indices.shape[:axis], depth, *indices.shape[axis:]], element, name="one_hot")

    return builder.call_te(compute, inputs[0], inputs[2], primfunc_name_hint="one_hot")


REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": T.max,
    "min": T.min,
}


def _axes(places: Any) -> list[Any]:
    """The variables of a grid; of one axis it gives the variable itself."""
    return [places] if isinstance(places, tvm.tirx.Var) else list(places)


def _scatter(
    builder: Any,
    inputs: Sequence[Any],
    attributes: dict[str, Any],
    target: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> Any:
    """The data, then every update in its order: at `target(indices, place of the update)`."""
    shapes = [[int(size) for size in tensor.ty.shape] for tensor in inputs]
    dtypes = [str(tensor.ty.dtype) for tensor in inputs]
    combine = REDUCTIONS[attributes.get("reduction", b"none").decode()]
    with IRBuilder() as tir, T.prim_func(s_tir=True):
        T.func_name("scatter")
        x, indices, updates = (
            T.arg(name, T.buffer(tuple(shape), dtype)) for name, shape, dtype in zip("xiu", shapes, dtypes, strict=True)
        )
        y = T.arg("y", T.buffer(tuple(shapes[0]), dtypes[0]))
        with T.grid(*shapes[0]) as places:
            at = _axes(places)
            T.buffer_store(y, x[tuple(at)], at)
        with T.grid(*shapes[2]) as places:
            at = _axes(places)
            place = target(indices, at)
            T.buffer_store(y, combine(y[tuple(place)], updates[tuple(at)]), place)
    function = builder.add_func(tir.get(), "scatter")
    return relax.call_tir(function, relax.Tuple(list(inputs)), inputs[0].ty)


@converter("", "ScatterElements")
def scatter_elements(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y = x; y[a.., indices[a.., i, b..], b..] = updates[a.., i, b..]."""
    axis = int(attributes.get("axis", 0)) % len(inputs[0].ty.shape)

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        return [*at[:axis], indices[tuple(at)], *at[axis + 1 :]]

    return _scatter(builder, inputs, attributes, target)


@converter("", "ScatterND")
def scatter_nd(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y = x; y[indices[a.., 0], indices[a.., 1], .., b..] = updates[a.., b..]."""
    *batch, coordinates = (int(size) for size in inputs[1].ty.shape)

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        first = at[: len(batch)]
        places = [(*first, axis) for axis in range(coordinates)]
        return [*(indices[place] for place in places), *at[len(batch) :]]

    return _scatter(builder, inputs, attributes, target)


# ---- arithmetic that C leaves undefined ----


def _bounds(dtype: str) -> tuple[bool, int]:
    """Whether a type is signed, and its bits; of integers."""
    kind = np.dtype(dtype)
    return kind.kind == "i", 8 * kind.itemsize


@converter("", "BitShift")
def bit_shift(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """A shift by y; negative, or past the last bit, it gives what the sign alone gives: 0, or -1 for x < 0 >> y."""
    x, y = inputs
    dtype = str(x.ty.dtype)
    signed, bits = _bounds(dtype)
    zero = relax.const(0, dtype)
    inside = relax.op.less(y, relax.const(bits, dtype))
    if signed:
        inside = relax.op.logical_and(inside, relax.op.greater_equal(y, zero))
    amount = relax.op.where(inside, y, zero)
    if attributes["direction"] == b"LEFT":
        return relax.op.where(inside, relax.op.left_shift(x, amount), zero)
    fill = relax.op.where(relax.op.less(x, zero), relax.const(-1, dtype), zero) if signed else zero
    return relax.op.where(inside, relax.op.right_shift(x, amount), fill)


def _divided(x: Any, y: Any, divide: Callable[[Any, Any], Any], by_minus_one: Any) -> Any:
    """`divide(x, y)` of integers, where 0 and, as the quotient may not fit, -1 never reach the processor's division."""
    dtype = str(x.ty.dtype)
    signed, _ = _bounds(dtype)
    zero, minus_one = relax.const(0, dtype), relax.const(-1 if signed else 0, dtype)
    by_zero, by_minus = relax.op.equal(y, zero), relax.op.equal(y, minus_one)
    # Sums, not a choice: TVM divides both sides of a choice. 0 and -1 become 1.
    divisor = relax.op.add(y, relax.op.astype(by_zero, dtype))
    if not signed:
        return relax.op.where(by_zero, zero, divide(x, divisor))
    twice = relax.op.multiply(relax.op.astype(by_minus, dtype), relax.const(2, dtype))
    result = relax.op.where(by_minus, by_minus_one, divide(x, relax.op.add(divisor, twice)))
    return relax.op.where(by_zero, zero, result)


@converter("", "Div")
def div(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x / y; of integers the quotient without its fraction, and 0 where y is 0, as NumPy has it."""
    x, y = inputs
    if "float" in str(x.ty.dtype):
        return relax.op.divide(x, y)
    return _divided(x, y, relax.op.divide, relax.op.subtract(relax.const(0, str(x.ty.dtype)), x))


def _floor_mod(x: Any, y: Any) -> Any:
    """The remainder with the sign of y, of integers; TVM's own fails for int8 in vectors."""
    rest, zero = relax.op.mod(x, y), relax.const(0, str(x.ty.dtype))
    other_sign = relax.op.logical_xor(relax.op.less(rest, zero), relax.op.less(y, zero))
    moved = relax.op.logical_and(other_sign, relax.op.not_equal(rest, zero))
    return relax.op.where(moved, relax.op.add(rest, y), rest)


@converter("", "Mod")
def mod(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The remainder with the sign of y, or with `fmod` that of x; of integers 0 where y is 0, as NumPy has it."""
    x, y = inputs
    dtype = str(x.ty.dtype)
    zero = relax.const(0, dtype)
    of_x = bool(attributes.get("fmod", 0))
    if "float" not in dtype:
        return _divided(x, y, relax.op.mod if of_x else _floor_mod, zero)
    rest = relax.op.mod(x, y)
    if of_x:
        return rest
    # x - floor(x / y) * y would round three times, and is NaN for an infinite y.
    negative = relax.op.less(y, zero)
    other_sign = relax.op.logical_xor(relax.op.less(rest, zero), negative)
    moved = relax.op.where(other_sign, relax.op.add(rest, y), rest)
    exact = relax.op.where(negative, relax.const(-0.0, dtype), zero)
    return relax.op.where(relax.op.equal(rest, zero), exact, moved)


@converter("", "Equal")
def equal(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x == y; LLVM does not take TVM's comparison of truth values."""
    x, y = inputs
    if str(x.ty.dtype) == "bool":
        return relax.op.logical_not(relax.op.logical_xor(x, y))
    return relax.op.equal(x, y)


@converter("", "MaxUnpool")
def max_unpool(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Zeros, and x where its indices say, counted in the output as it lies in memory."""
    shape = [int(size) for size in attributes["shape"]]
    flat = [builder.emit(relax.op.reshape(tensor, [-1])) for tensor in (inputs[1], inputs[0])]
    zeros = builder.emit(relax.op.zeros([int(np.prod(shape))], str(inputs[0].ty.dtype)))

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        return [indices[tuple(at)]]

    return relax.op.reshape(builder.emit(_scatter(builder, [zeros, *flat], {}, target)), shape)


# ---- what compares ----


def _from_left(combine: Callable[[Any, Any], Any]) -> Converter:
    """Two at a time: TVM's own, of one or more than two, starts at the largest finite number."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        made = inputs[0]
        for other in inputs[1:]:
            made = builder.normalize(combine(made, other))
        return made

    return convert


converter("", "Max")(_from_left(relax.op.maximum))
converter("", "Min")(_from_left(relax.op.minimum))


@converter("", "Sign")
def sign(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """-1, 0 or 1, and NaN of NaN."""
    x = inputs[0]
    signs = relax.op.sign(x)
    return relax.op.where(relax.op.isnan(x), x, signs) if "float" in str(x.ty.dtype) else signs


@converter("", "ThresholdedRelu")
def thresholded_relu(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x where it is above alpha, else 0, also of NaN; TVM's own multiplies by 0, which is NaN of infinity."""
    x = inputs[0]
    zero, alpha = (relax.const(value, str(x.ty.dtype)) for value in (0.0, float(attributes.get("alpha", 1.0))))
    return relax.op.where(relax.op.greater(x, alpha), x, zero)


def _axes_of_reduction(inputs: Sequence[Any], attributes: dict[str, Any]) -> list[int]:
    """The axes that a reduction is over, ascending; none where it hands its input on."""
    rank = len(inputs[0].ty.shape)
    axes = attributes.get("axes")
    if len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].value.numpy().reshape(-1)
    if axes is None or not len(axes):
        axes = [] if attributes.get("noop_with_empty_axes", 0) else range(rank)
    return sorted(int(axis) % rank for axis in axes)


def _extreme(name: str, combine: Callable[[Any, Any], Any], first: float) -> Converter:
    """A reduction that starts at infinity: TVM's own starts at the largest finite number, which masked rows are not."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        x, truth = inputs[0], str(inputs[0].ty.dtype) == "bool"
        if truth:
            x = builder.emit(relax.op.astype(x, "uint8"))
        dtype, rank = str(x.ty.dtype), len(x.ty.shape)
        over = _axes_of_reduction(inputs, attributes)
        if not over and rank:
            return inputs[0]
        identity = first if "float" in dtype else _limit(dtype, first)
        reduce = te.comm_reducer(combine, lambda kind: tvm.tirx.const(identity, kind), name=name)

        def compute(x: Any) -> Any:
            spans = {axis: te.reduce_axis((0, x.shape[axis]), f"k{axis}") for axis in over}
            keep = bool(attributes.get("keepdims", 1))
            shape = [1 if i in spans else size for i, size in enumerate(x.shape) if keep or i not in spans]

            def element(*at: Any) -> Any:
                places = iter(at)
                index = []
                for axis in range(rank):
                    place = next(places) if keep or axis not in spans else None
                    index.append(spans.get(axis, place))
                return reduce(x(*index), axis=list(spans.values()))

            return te.compute(shape, element, name=name)

        made = builder.call_te(compute, x, primfunc_name_hint=name)
        return relax.op.astype(builder.emit(made), "bool") if truth else made

    return convert


def _limit(dtype: str, sign: float) -> int:
    info = np.iinfo(dtype)
    return int(info.max if sign > 0 else info.min)


converter("", "ReduceMax")(_extreme("reduce_max", T.max, -np.inf))
converter("", "ReduceMin")(_extreme("reduce_min", T.min, np.inf))


@converter("", "ReduceLogSumExp")
def reduce_log_sum_exp(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """log sum exp x, by the largest x where that is finite: infinite where it is not, of which TVM's own is NaN."""
    x, over = inputs[0], _axes_of_reduction(inputs, attributes)
    if not over and len(x.ty.shape):
        return x
    largest = builder.emit(CONVERTERS["", "ReduceMax"](builder, inputs, {**attributes, "keepdims": 1}))
    zero = relax.const(0, str(x.ty.dtype))
    shift = builder.emit(relax.op.where(relax.op.isinf(largest), zero, largest))
    total = relax.op.sum(relax.op.exp(relax.op.subtract(x, shift)), over, True)
    result = builder.emit(relax.op.add(relax.op.log(total), shift))
    return result if attributes.get("keepdims", 1) else relax.op.squeeze(result, over)


def _place_of(name: str, first: float) -> Converter:
    """The place of the largest or smallest element, or of NaN: TVM's own is -1 where all are infinite."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        x = inputs[0]
        dtype, rank = str(x.ty.dtype), len(x.ty.shape)
        axis = int(attributes.get("axis", 0)) % rank
        keep, last = bool(attributes.get("keepdims", 1)), bool(attributes.get("select_last_index", 0))
        lowest = first if "float" in dtype else _limit(dtype, first)

        def better(a: Any, b: Any) -> tuple[Any, Any]:
            beats = a[1] > b[1] if first < 0 else a[1] < b[1]
            equal = a[1] == b[1]
            if "float" in dtype:
                nan, other = (tvm.tirx.isnan(value) for value in (a[1], b[1]))
                beats = tvm.tirx.Or(beats, tvm.tirx.And(nan, tvm.tirx.Not(other)))
                equal = tvm.tirx.Or(equal, tvm.tirx.And(nan, other))
            earlier = a[0] > b[0] if last else a[0] < b[0]
            takes = tvm.tirx.Or(beats, tvm.tirx.And(equal, earlier))
            return tvm.tirx.Select(takes, a[0], b[0]), tvm.tirx.Select(takes, a[1], b[1])

        def none(place: str, kind: str) -> tuple[Any, Any]:
            return tvm.tirx.const(0, place), tvm.tirx.const(lowest, kind)

        reduce = te.comm_reducer(better, none, name=name)

        def compute(x: Any) -> Any:
            span = te.reduce_axis((0, x.shape[axis]), "k")
            shape = [1 if i == axis else size for i, size in enumerate(x.shape) if keep or i != axis]

            def element(*at: Any) -> Any:
                index = [*at[:axis], span.var, *at[axis + keep :]]
                return reduce((span.var.astype("int64"), x(*index)), axis=span)

            return te.compute(shape, element, name=name)[0]

        return builder.call_te(compute, x, primfunc_name_hint=name)

    return convert


converter("", "ArgMax")(_place_of("argmax", -np.inf))
converter("", "ArgMin")(_place_of("argmin", np.inf))
