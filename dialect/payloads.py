"""The sizes of the tensors of an ONNX model, and the model without its large ones.

ONNX's C++ functions copy a serialized model of at most 2 GB: for them, large initializers are replaced by inputs of the
same type.

    made = with_payloads(onnx.inliner.inline_local_functions(without_payloads(model)), model)
"""

from __future__ import annotations

from math import prod

import onnx

from subbyte.errors import ModelError

LARGE = 1 << 16  # bytes of a tensor that is removed; shape inference only needs far smaller ones

_SMALL_BITS: dict[int, int] = {
    getattr(onnx.TensorProto, name): bits
    for bits, names in {
        2: ("INT2", "UINT2"),
        4: ("INT4", "UINT4", "FLOAT4E2M1"),
        6: ("FLOAT6E2M3", "FLOAT6E3M2"),
    }.items()
    for name in names
    if hasattr(onnx.TensorProto, name)
}


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's elements take when packed (int4: two a byte); raises ModelError for an unknown type."""
    kind = tensor.data_type
    if kind == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    try:
        bits = _SMALL_BITS.get(kind) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError as error:
        raise ModelError(
            f"tensor '{tensor.name}' has type {kind}, which ONNX does not know; export it again"
        ) from error
    return (int(prod(tensor.dims)) * bits + 7) // 8


def tensor_values(tensor: onnx.TensorProto) -> int:
    """Values that a tensor takes where its data are not raw: two int4 share one, four int2; a complex number is two."""
    elements = int(prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * elements
    bits = _SMALL_BITS.get(tensor.data_type, 8)
    return -(-elements // (8 // bits))


def without_payloads(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers are inputs; their data are not copied."""
    light = onnx.ModelProto()
    _copy(model, light, but="graph")
    _copy(model.graph, light.graph, but="initializer")
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor_bytes(tensor) <= LARGE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def with_payloads(light: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """What was made of `without_payloads(model)`, in place, with the large initializers of `model`."""
    large = [tensor for tensor in model.graph.initializer if tensor_bytes(tensor) > LARGE]
    added = {tensor.name for tensor in large} - {value.name for value in model.graph.input}
    for index in reversed([i for i, value in enumerate(light.graph.input) if value.name in added]):
        del light.graph.input[index]
    light.graph.initializer.extend(large)
    return light


def _copy(source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "MergeFrom") and not hasattr(value, "extend"):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
