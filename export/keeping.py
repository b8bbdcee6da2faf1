"""Keep or recompute: a block's joint graph cut into a forward pass that keeps and a backward pass that takes.

Without it a backward graph computes the whole forward pass again. Keeping every activation would cost many times the
block's input. In between lies the cut that keeps the fewest bytes from which the backward pass makes no product with a
weight twice: all else (norms, activations, rotary embeddings, the scores of attention) is cheap to compute again.
It is a minimum cut, as in torch's rematerialisation of joint graphs
(https://dev-discuss.pytorch.org/t/min-cut-optimal-recomputation-i-e-activation-checkpointing-with-aotautograd/467):
each value is an edge whose capacity is its size, products with weights are the source, the backward pass is the sink.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir
from onnx_ir.passes import common

from export.lowering import PRODUCTS, restrict

FULL_BITS = 32
PRECISIONS = {FULL_BITS: ir.DataType.FLOAT, 16: ir.DataType.FLOAT16}
MANY_TOKENS = 128  # attention's scores count as so many numbers a token and head
SOURCE, SINK = "source", "sink"


@dataclass(frozen=True, slots=True)
class Kept:
    """Two graphs and what flows between them: values of `floats` numbers a token and `row_floats` a row in all, by
    `names`.

    Forward outputs `y` and those, backward takes `x`, `dy` and those.
    """

    forward: ir.Model
    backward: ir.Model
    names: tuple[str, ...]
    floats: int
    row_floats: int


def keep_products(joint: ir.Model, weights: Iterable[str], bits: int) -> Kept:
    """Cut `joint` (inputs `x`, `dy`, context, `weights`; outputs `y` and gradients), keeping in 32 or 16 bits."""
    values = _cut(joint, set(weights))
    origin = [value.name or "" for value in values]
    names = tuple(f"kept.{k}" for k in range(len(values)))
    one, two = (sum(_numbers(value, tokens) for value in values) for tokens in (1, 2))
    floats, row_floats = two - one, 2 * one - two  # a block may add tokens of its own to every row
    return Kept(_forward(joint, origin, names, bits), _backward(joint, origin, names, bits), names, floats, row_floats)


def _cut(joint: ir.Model, weights: set[str]) -> list[ir.Value]:
    """The values to keep, in the graph's order."""
    before = _before_the_turn(joint)
    there = _needed_there(joint)
    graph = nx.DiGraph()
    graph.add_nodes_from((SOURCE, SINK))
    for node in before:
        product = _is_product_with(node, weights)
        for value in node.outputs:
            # Of values alike, one that the way there computes anyway: a slope, say, is left to the way back. What is no
            # number (where a ReLU lets through) is not kept, but made again of what is.
            numbers = _numbers(value, MANY_TOKENS) if value.dtype is ir.DataType.FLOAT else math.inf
            capacity = numbers * (1 + len(before)) + (node not in there)
            graph.add_edge((value.name, "in"), (value.name, "out"), capacity=capacity)
            if product:
                graph.add_edge(SOURCE, (value.name, "in"))
            for use in value.uses():
                if use.node not in before:
                    graph.add_edge((value.name, "out"), SINK)
        if not product:
            for given in node.inputs:
                if given is not None and given.producer() in before:
                    graph.add_edges_from(((given.name, "out"), (value.name, "in")) for value in node.outputs)
    _, (reached, _) = nx.minimum_cut(graph, SOURCE, SINK)
    values = (value for node in before for value in node.outputs)
    return [v for v in values if (v.name, "in") in reached and (v.name, "out") not in reached]


def _before_the_turn(joint: ir.Model) -> dict[ir.Node, None]:
    """The nodes that do not depend on `dy`, in order."""
    after = {"dy"}
    before: dict[ir.Node, None] = {}
    for node in joint.graph:
        if any(value is not None and value.name in after for value in node.inputs):
            after.update(value.name or "" for value in node.outputs)
        else:
            before[node] = None
    return before


def _needed_there(joint: ir.Model) -> set[ir.Node]:
    """The nodes that `y` depends on."""
    wanted = [value.producer() for value in joint.graph.outputs if value.name == "y"]
    found: set[ir.Node] = set()
    while wanted:
        node = wanted.pop()
        if node is not None and node not in found:
            found.add(node)
            wanted += [value.producer() for value in node.inputs if value is not None]
    return found


def _is_product_with(node: ir.Node, weights: set[str]) -> bool:
    return node.op_type in PRODUCTS and any(value is not None and value.name in weights for value in node.inputs)


def _numbers(value: ir.Value, tokens: int) -> int:
    """How many numbers one row of `tokens` tokens has of it."""
    if value.shape is None:
        msg = f"{value.name} has no shape"
        raise ValueError(msg)
    return math.prod(_size(str(getattr(n, "value", n)), tokens) for n in value.shape)


@functools.cache
def _size(dimension: str, tokens: int) -> int:
    """A dimension, as `2*tokens + 6`, of one row of so many tokens."""
    return int(eval(dimension, {"__builtins__": {}}, {"batch": 1, "tokens": tokens}))  # noqa: S307 - torch wrote it


def _forward(joint: ir.Model, origin: Sequence[str], names: Sequence[str], bits: int) -> ir.Model:
    model = ir.from_proto(ir.to_proto(joint))
    values = _by_name(model)
    for source, name in zip(origin, names, strict=True):
        kept = values[source]
        if bits != FULL_BITS or kept.is_graph_output():
            node = ir.node("Cast", [kept], {"to": PRECISIONS[bits]})
            model.graph.append(node)
            node.outputs[0].shape, kept = kept.shape, node.outputs[0]
        kept.name, kept.type = name, ir.TensorType(PRECISIONS[bits])
        model.graph.outputs.append(kept)
    return restrict(model, lambda name: name != "dy", lambda name: name == "y" or name in names)


def _backward(joint: ir.Model, origin: Sequence[str], names: Sequence[str], bits: int) -> ir.Model:
    model = restrict(joint, lambda _: True, lambda name: name != "y")
    values = _by_name(model)
    first = model.graph[0]
    place = 1 + next(k for k, value in enumerate(model.graph.inputs) if value.name == "dy")
    for k, (source, name) in enumerate(zip(origin, names, strict=True)):
        given = ir.Value(name=name, type=ir.TensorType(PRECISIONS[bits]), shape=values[source].shape)
        model.graph.inputs.insert(place + k, given)
        taken = given
        if bits != FULL_BITS:
            cast = ir.node("Cast", [given], {"to": ir.DataType.FLOAT})
            model.graph.insert_before(first, cast)
            taken = cast.outputs[0]
        values[source].replace_all_uses_with(taken)
    common.RemoveUnusedNodesPass()(model)
    return model


def _by_name(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for node in model.graph for value in node.outputs}
