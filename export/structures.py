"""Parts of a model -> the graphs of an artifact, captured once and shared by all levels of 32 bits.

Graph inputs, in order: what flows in (`ids`, `x`, `dy`), context, frozen tensors, trained tensors.
Outputs: `y` forward; `dx` and `d.<trained>` backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call

from export.adapters import Named, named
from export.capture import IR_VERSION, OPSET, Function, Sizes, Tensors, capture
from export.families import Family, Part
from export.lowering import FreeRows, lower, restrict


@dataclass(frozen=True, slots=True)
class Captured:
    """The graphs of one part; the step of a loss counts as its forward. `frozen` and `trained` map inputs to shapes."""

    forward: ir.Model
    backward: ir.Model | None
    context: tuple[str, ...]
    frozen: Mapping[str, tuple[int, ...]]
    trained: Mapping[str, tuple[int, ...]]


def signature(part: Part) -> tuple[Any, ...]:
    """What two parts must share to share their graphs: class, and name, shape and role of every tensor."""
    tensors = ((name, tuple(t.value.shape), t.trained) for name, t in named(part).items())
    return type(part.module), part.context, tuple(tensors)


def sizes_for(model: nn.Module) -> Sizes:
    """A batch and a number of tokens that no dimension of `model` can be taken for."""
    return Sizes.unlike({n for p in model.parameters() for n in p.shape})


def capture_context(family: Family, backbone: Any, sizes: Sizes) -> ir.Model:  # noqa: ANN401
    """`attention_mask` (batch, tokens) int64 -> the context tensors by name."""
    return lower(
        capture(
            lambda t: family.context(backbone, t["attention_mask"]),
            {"attention_mask": torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64)},
            sizes,
        )
    )


def capture_embed(part: Part, sizes: Sizes) -> Captured:
    """`ids` (batch, tokens) int64 -> `y`. Nothing flows back below it.

    The embedding `matrix` may have any number of rows: a device gives only those that a batch uses, and counts ids
    within them.
    """
    examples = {"ids": torch.zeros(sizes.batch, sizes.tokens, dtype=torch.int64), **_examples(part)}
    graph = lower(capture(lambda t: {"y": _call(part, t["ids"], t)}, examples, sizes))
    FreeRows()(graph)
    return _captured(part, graph, None)


def capture_block(part: Part, context: Tensors, width: int, sizes: Sizes) -> Captured:
    """`x` (batch, tokens, width) -> `y`; `x`, `dy` -> `dx`, `d.<trained>`, recomputing the forward pass.

    Traced once, for tracing is what an export's time goes to; each direction keeps what it needs of the graph.
    """
    x = torch.zeros(sizes.batch, sizes.tokens, width)
    tensors = {**{name: context[name] for name in part.context}, **_examples(part)}
    both = capture(_both_ways(part), {"x": x, "dy": torch.zeros_like(x), **tensors}, sizes)
    forward = restrict(both, lambda name: name != "dy", lambda name: name == "y")
    backward = restrict(both, lambda _: True, lambda name: name != "y")
    return _captured(part, lower(forward), lower(backward))


def capture_step(part: Part, width: int, sizes: Sizes) -> Captured:
    """The classes loss: `x`, `attention_mask`, `labels`, `weight`, tensors -> `loss`, `logits`, `dx`, `d.<trained>`."""
    examples = {
        "x": torch.zeros(sizes.batch, sizes.tokens, width),
        "attention_mask": torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64),
        "labels": torch.zeros(sizes.batch, dtype=torch.int64),
        "weight": torch.ones(()),
        **_examples(part),
    }
    return _captured(part, lower(capture(_step(part), examples, sizes)), None)


def vocabulary_graphs(width: int) -> dict[str, ir.Model]:
    """`project`: logits = z matrix^T; `unproject`: dz = dlogits matrix. `matrix` is any slice of the rows."""
    return {
        "project": lower(_product("z", ["rows", width], "logits", ["rows", "chunk"], width, swap=True)),
        "unproject": lower(_product("dlogits", ["rows", "chunk"], "dz", ["rows", width], width, swap=False)),
    }


def _examples(part: Part) -> dict[str, Tensor]:
    return {name: entry.value.detach() for name, entry in named(part).items()}


def _captured(part: Part, forward: ir.Model, backward: ir.Model | None) -> Captured:
    tensors = named(part)
    return Captured(
        forward,
        backward,
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
        # As a product with one-hot labels: its gradient is a product too, where a look-up's would be a scatter.
        hit = (tensors["labels"][:, None] == torch.arange(logits.shape[1])).to(logits.dtype)
        loss = -(hit * torch.log_softmax(logits, dim=1)).sum() * tensors["weight"]
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


def _product(
    left: str, left_shape: list[str | int], out: str, out_shape: list[str | int], width: int, *, swap: bool
) -> ir.Model:
    kind = ir.TensorType(ir.DataType.FLOAT)
    a = ir.Value(name=left, type=kind, shape=ir.Shape(left_shape))
    matrix = ir.Value(name="matrix", type=kind, shape=ir.Shape(["chunk", width]))
    nodes = [ir.node("Transpose", [matrix], {"perm": [1, 0]})] if swap else []
    product = ir.node("MatMul", [a, nodes[0].outputs[0] if swap else matrix])
    result = product.outputs[0]
    result.name, result.type, result.shape = out, kind, ir.Shape(out_shape)
    graph = ir.Graph([a, matrix], [result], nodes=[*nodes, product], opset_imports={"": OPSET}, name="graph")
    return ir.Model(graph, ir_version=IR_VERSION)
