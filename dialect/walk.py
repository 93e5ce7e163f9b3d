"""Everything in an ONNX model: in the graph, in the subgraphs of its nodes, in its functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the subgraphs of its nodes."""
    yield graph
    yield from subgraphs(graph.node)


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs that nodes hold, at any depth."""
    waiting = list(nodes)
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield graph
                waiting += graph.node


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    nodes = list(nodes)
    yield from nodes
    for graph in subgraphs(nodes):
        yield from graph.node


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of graph, subgraphs and functions."""
    yield from all_nodes(model.graph.node)
    for function in model.functions:
        yield from all_nodes(function.node)


def every_tensor(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers and attributes of graph, subgraphs and functions, the parts of sparse ones too."""
    for graph in all_graphs(model.graph):
        yield from _initializers(graph)
    for function in model.functions:
        for graph in subgraphs(function.node):
            yield from _initializers(graph)
    for node in every_node(model):
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for tensor in (*sparse, *attribute.sparse_tensors):
                yield from (tensor.values, tensor.indices)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def label_of(node: onnx.NodeProto) -> str:
    """What a node is called in a message."""
    return str(node.name or next(filter(None, node.output), "") or node.op_type)
