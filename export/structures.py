"""Parts of a model -> the graphs of an artifact, captured once and shared by all levels of 32 bits.

Graph inputs, in order: what flows in (`ids`, `pixels`, `x`, `dy`), what was kept, context, frozen tensors, trained
tensors. Outputs: `y` forward, and what is kept; `dx` and `d.<trained>` backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call

from edge_sdk.wire.manifest import ImageSpec
from export.adapters import Named, named
from export.capture import IR_VERSION, OPSET, Function, Sizes, Tensors, capture
from export.families import Family
from export.formulas import lean
from export.keeping import PRECISIONS, Kept, keep_products
from export.lowering import Canonicalize, FreeRows, lower, restrict, simplify
from export.parts import Part
from export.prefix import context_behind


@dataclass(frozen=True, slots=True)
class Captured:
    """The graphs of one part; the step of a loss counts as its forward. `frozen` and `trained` map inputs to shapes.

    `kept` has, by bits, the pairs of graphs that keep activations; a part that nothing flows back through has none.
    """

    forward: ir.Model
    backward: ir.Model | None
    kept: Mapping[int, Kept]
    context: tuple[str, ...]
    frozen: Mapping[str, tuple[int, ...]]
    trained: Mapping[str, tuple[int, ...]]


def signature(part: Part) -> tuple[Any, ...]:
    """What two parts must share to share their graphs: class, and name, shape and role of every tensor."""
    tensors = ((name, tuple(t.value.shape), t.trained) for name, t in named(part).items())
    return type(part.module), part.context, tuple(tensors)


def sizes_for(model: nn.Module, image: ImageSpec | None = None) -> Sizes:
    """A batch and a number of tokens that no dimension of `model`, or of its images, can be taken for."""
    return Sizes.unlike({n for p in model.parameters() for n in p.shape} | set(image.shape if image else ()))


def capture_context(family: Family, backbone: Any, before: int, sizes: Sizes) -> ir.Model:  # noqa: ANN401
    """`attention_mask` (batch, tokens) int64 -> the context tensors by name, the first token at position `before`."""
    return lower(
        capture(
            lambda t: context_behind(family, backbone, t["attention_mask"], before),
            {"attention_mask": torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64)},
            sizes,
        )
    )


def capture_embed(part: Part, sizes: Sizes) -> Captured:
    """`ids` (batch, tokens) int64 -> `y`. Nothing flows back below it.

    The embedding `matrix` may have any number of rows: a device gives only those that a batch uses, and counts ids
    within them.
    """
    graph = _embed(part, "ids", torch.zeros(sizes.batch, sizes.tokens, dtype=torch.int64), sizes)
    FreeRows()(graph)
    return _captured(part, graph, None, {})


def capture_patches(part: Part, image: ImageSpec, sizes: Sizes) -> Captured:
    """`pixels` (batch, channels, height, width) uint8 -> `y`, of as many tokens as the model makes of an image."""
    graph = _embed(part, "pixels", torch.zeros(sizes.batch, *image.shape, dtype=torch.uint8), sizes)
    return _captured(part, graph, None, {})


def capture_block(part: Part, context: Tensors, width: int, sizes: Sizes) -> Captured:
    """`x` (batch, tokens, width) -> `y`; `x`, `dy` -> `dx`, `d.<trained>`, recomputing the forward pass; and both again
    with activations kept between them.

    Traced once, for tracing is what an export's time goes to; each graph is what it needs of the joint one.
    """
    x = torch.zeros(sizes.batch, sizes.tokens, width)
    tensors = {**{name: context[name] for name in part.context}, **_examples(part)}
    joint = capture(_both_ways(part), {"x": x, "dy": torch.zeros_like(x), **tensors}, sizes)
    _measure_x(joint)
    joint = lean(simplify(joint))
    forward = restrict(joint, lambda name: name != "dy", lambda name: name == "y")
    backward = restrict(joint, lambda _: True, lambda name: name != "y")
    kept = {bits: pair for bits in PRECISIONS if (pair := keep_products(joint, _examples(part), bits)).names}
    for graph in (forward, backward, *(g for pair in kept.values() for g in (pair.forward, pair.backward))):
        Canonicalize()(graph)
    return _captured(part, forward, backward, kept)


def _measure_x(joint: ir.Model) -> None:
    """Where the exporter has taken a length from `dy`, which is of the shape of `x`, take it from `x`, in place.

    The way there has no `dy`. Where there is a mask, lengths come from that.
    """
    inputs = {value.name: value for value in joint.graph.inputs}
    for node in [use.node for use in inputs["dy"].uses()]:
        if node.op_type == "Shape":
            node.replace_input_with(0, inputs["x"])


def capture_step(part: Part, width: int, sizes: Sizes, *, labels_tokens: bool) -> Captured:
    """The classes loss: `x`, `attention_mask`, `labels`, `weight`, tensors -> `loss`, `logits`, `dx`, `d.<trained>`."""
    labelled = (sizes.batch, sizes.tokens) if labels_tokens else (sizes.batch,)
    examples = {
        "x": torch.zeros(sizes.batch, sizes.tokens, width),
        "attention_mask": torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64),
        "labels": torch.zeros(labelled, dtype=torch.int64),
        "weight": torch.ones(()),
        **_examples(part),
    }
    return _captured(part, lower(capture(_step(part), examples, sizes)), None, {})


def vocabulary_graphs(width: int) -> dict[str, ir.Model]:
    """The loss over the vocabulary in pieces: `matrix` is any slice of its rows, `z` the hidden state of any positions.

    `project`: the softmax over the slice of z matrix^T, and the logarithm of the sum that it was divided by, `logsum`.
    `unproject`: dz = softmax matrix.
    `lookup`: the rows `ids` of matrix.
    """
    return {"project": lower(_project(width)), "unproject": lower(_unproject(width)), "lookup": lower(_lookup(width))}


def _project(width: int) -> ir.Model:
    z, matrix, last = _given("z", ["rows", width]), _given("matrix", ["chunk", width]), _constant([1])
    swapped = ir.node("Transpose", [matrix], {"perm": [1, 0]})
    logits = ir.node("MatMul", [z, swapped.outputs[0]])
    softmax = ir.node("Softmax", logits.outputs, {"axis": 1})
    # The largest logit's share of the softmax is 1 / sum(exp(logits - largest)).
    largest = ir.node("ReduceMax", [logits.outputs[0], last.outputs[0]])
    share = ir.node("ReduceMax", [softmax.outputs[0], last.outputs[0]])
    logarithm = ir.node("Log", share.outputs)
    logsum = ir.node("Sub", [largest.outputs[0], logarithm.outputs[0]])
    nodes = [last, swapped, logits, softmax, largest, share, logarithm, logsum]
    return _model([z, matrix], nodes, {"softmax": (softmax, ["rows", "chunk"]), "logsum": (logsum, ["rows", 1])})


def _unproject(width: int) -> ir.Model:
    softmax, matrix = _given("softmax", ["rows", "chunk"]), _given("matrix", ["chunk", width])
    product = ir.node("MatMul", [softmax, matrix])
    return _model([softmax, matrix], [product], {"dz": (product, ["rows", width])})


def _lookup(width: int) -> ir.Model:
    ids, matrix = _given("ids", ["rows"], ir.DataType.INT64), _given("matrix", ["chunk", width])
    looked_up = ir.node("Gather", [matrix, ids], {"axis": 0})
    return _model([ids, matrix], [looked_up], {"z": (looked_up, ["rows", width])})


def _embed(part: Part, name: str, example: Tensor, sizes: Sizes) -> ir.Model:
    return lower(capture(lambda t: {"y": _call(part, t[name], t)}, {name: example, **_examples(part)}, sizes))


def _examples(part: Part) -> dict[str, Tensor]:
    return {name: entry.value.detach() for name, entry in named(part).items()}


def _captured(part: Part, forward: ir.Model, backward: ir.Model | None, kept: Mapping[int, Kept]) -> Captured:
    tensors = named(part)
    return Captured(
        forward,
        backward,
        kept,
        part.context,
        {name: tuple(t.value.shape) for name, t in tensors.items() if not t.trained},
        {name: tuple(t.value.shape) for name, t in tensors.items() if t.trained},
    )


def _call(part: Part, x: Tensor, tensors: Tensors) -> Tensor:
    """The part's module on `x`, with its parameters taken from `tensors`."""
    arguments, options = part.arguments(x, tensors)
    parameters = {entry.path: tensors[name] for name, entry in named(part).items()}
    result = functional_call(part.module, parameters, arguments, options)
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def _both_ways(part: Part) -> Function:
    def function(tensors: Tensors) -> Tensors:
        leaves = _leaves(tensors, named(part))
        y = _call(part, leaves["x"], leaves)
        gradients = torch.autograd.grad(y, _wanted(leaves, named(part)), tensors["dy"])
        return {"y": y.detach(), **_gradients(named(part), gradients)}

    return function


def _step(part: Part) -> Function:
    def function(tensors: Tensors) -> Tensors:
        leaves = _leaves(tensors, named(part))
        logits = _call(part, leaves["x"], leaves)
        # As a product with one-hot labels: its gradient is a product too, where a look-up's would be a scatter. A label
        # that is no class, as IGNORED is none, is nowhere hit.
        hit = (tensors["labels"][..., None] == torch.arange(logits.shape[-1])).to(logits.dtype)
        loss = -(hit * torch.log_softmax(logits, dim=-1)).sum() * tensors["weight"]
        gradients = _gradients(named(part), torch.autograd.grad(loss, _wanted(leaves, named(part))))
        return {"loss": loss.detach(), "logits": logits.detach(), **gradients}

    return function


def _leaves(tensors: Tensors, parts: Mapping[str, Named]) -> dict[str, Tensor]:
    """The tensors, with those that get a gradient made leaves of a graph of their own."""
    trained = {"x", *(name for name, entry in parts.items() if entry.trained)}
    return {name: value.detach().requires_grad_() if name in trained else value for name, value in tensors.items()}


def _wanted(leaves: Tensors, parts: Mapping[str, Named]) -> list[Tensor]:
    return [leaves["x"], *(leaves[name] for name, entry in parts.items() if entry.trained)]


def _gradients(parts: Mapping[str, Named], values: tuple[Tensor, ...]) -> dict[str, Tensor]:
    names = ["dx", *(f"d.{name}" for name, entry in parts.items() if entry.trained)]
    return dict(zip(names, values, strict=True))


def _given(name: str, shape: list[str | int], kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def _constant(values: list[int]) -> ir.Node:
    return ir.node("Constant", [], {"value_ints": values})


def _model(given: list[ir.Value], nodes: list[ir.Node], wanted: dict[str, tuple[ir.Node, list[str | int]]]) -> ir.Model:
    for name, (node, shape) in wanted.items():
        out = node.outputs[0]
        out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    outputs = [node.outputs[0] for node, _ in wanted.values()]
    graph = ir.Graph(given, outputs, nodes=nodes, opset_imports={"": OPSET}, name="graph")
    return ir.Model(graph, ir_version=IR_VERSION)
