"""Axes: a network is channels last throughout, with as few transposes as its file allows."""

from __future__ import annotations

import numpy as np
import pytest
from hand_graphs import Builder
from lowered import assert_equal

from subbyte.tvm_kernels.lowering import lower_graph


def transposes(graph):
    return [node for node in graph.order() if node.op in ("Transpose", "Permute")]


def test_one_transpose_at_the_input_and_none_for_one_channel():
    for channels, expected in ((3, 1), (1, 0)):
        b = Builder()
        y = b.conv(b.quantize(b.input(1, channels, 8, 8)), "int8", 8, channels, 3, 3)
        y = b.conv(b.quantize(b.node("Relu", y)), "ternary", 4, 8, 3, 3)
        pooled = b.node("GlobalAveragePool", y)
        model = b.model(b.linear(b.quantize(b.node("Flatten", pooled)), "int4", 5, 4))
        assert len(transposes(lower_graph(model))) == expected
        assert_equal(model)


@pytest.mark.parametrize("operator", ["Flatten", "Reshape"])
def test_flatten_of_pixels_and_channels_turns_the_weights_instead(operator):
    b = Builder()
    y = b.conv(b.quantize(b.input(1, 1, 8, 8)), "int8", 6, 1, 3, 3)
    flat = b.node("Flatten", y) if operator == "Flatten" else b.node("Reshape", y, b.constant([1, -1], np.int64))
    graph = assert_equal(b.model(b.linear(b.quantize(flat), "ternary", 5, 216)))
    assert transposes(graph) == []


def test_transposes_of_the_file_become_kernels_or_views():
    b = Builder()
    x = b.input(1, 6, 3, 4)
    turned = b.node("Transpose", b.node("Exp", x), perm=[2, 0, 3, 1])  # [3, 1, 4, 6]
    same = b.node("Transpose", b.node("Sin", x), perm=[1, 2, 0, 3])  # the axis of one element moves
    backwards = b.node("Transpose", b.node("Floor", x))
    graph = lower_graph(b.model(turned, same, backwards))
    assert [node.op for node in graph.order() if node.op in ("Transpose", "Permute")] == ["Permute", "Permute"]
    moves = [node.operator for node in graph.order() if node.op == "Permute"]
    assert [(move.shape, move.perm) for move in moves] == [((1, 6, 3, 4), (2, 0, 3, 1)), ((1, 6, 3, 4), (3, 2, 1, 0))]


def test_flatten_that_something_else_reads_is_transposed():
    b = Builder()
    y = b.node("Flatten", b.conv(b.quantize(b.input(1, 1, 8, 8)), "int8", 6, 1, 3, 3))
    graph = assert_equal(b.model(y, b.linear(b.quantize(y), "ternary", 5, 216)))
    assert len(transposes(graph)) >= 1


def test_tokens_of_patches_need_no_transpose():
    b = Builder()
    y = b.conv(b.quantize(b.input(1, 1, 8, 8)), "int8", 16, 1, 2, 2, strides=[2, 2])
    tokens = b.node("Transpose", b.node("Reshape", y, b.constant([1, 16, 16], np.int64)), perm=[0, 2, 1])
    graph = assert_equal(b.model(b.linear(b.quantize(tokens), "int4", 8, 16)))
    assert transposes(graph) == []


def test_concatenated_channels_stay_channels_last():
    b = Builder()
    codes = b.quantize(b.input(1, 1, 8, 8))
    both = b.node("Concat", b.conv(codes, "int8", 4, 1, 3, 3), b.conv(codes, "int8", 3, 1, 3, 3), axis=1)
    graph = assert_equal(b.model(b.conv(b.quantize(both), "ternary", 4, 7, 1, 1)))
    assert len(transposes(graph)) == 1  # of the output
