"""A function of named tensors -> an ONNX graph with those names, of any batch and any number of tokens.

The backward pass is part of the function: autograd is traced away by `make_fx`, what is left are ATen operators, which
torch's exporter turns into ONNX operators. So a stock runtime can train.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

OPSET = 21  # the newest that onnxruntime 1.19.2 runs, as is IR version 10
IR_VERSION = 10
Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The batch and tokens that examples are made with: two numbers that no other dimension has.

    They are told apart from the model's dimensions by value, and tracing takes equal numbers for one dimension.
    """

    batch: int
    tokens: int

    @staticmethod
    def unlike(dimensions: set[int]) -> Sizes:
        """The first two primes that divide none of `dimensions`: no number or size of heads is one either."""
        free = (n for n in range(5, 10_000) if _is_prime(n) and all(d % n for d in dimensions))
        return Sizes(batch=next(free), tokens=next(free))


def _is_prime(number: int) -> bool:
    return all(number % k for k in range(2, math.isqrt(number) + 1))


def capture(function: Function, examples: Tensors, sizes: Sizes) -> ir.Model:
    """Trace `function` on `examples` to a graph whose inputs and outputs have their names, in order.

    A dimension that equals `sizes.batch` or `sizes.tokens` becomes dynamic, all others are fixed. Inputs that the
    function does not use stay inputs. The graph is as torch's exporter leaves it: see `export.lowering`.
    Raises ValueError when one tensor is the example of two inputs.
    """
    outputs: list[str] = []

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        found = function(dict(zip(examples, values, strict=True)))
        outputs[:] = found
        return tuple(found.values())

    values = tuple(examples.values())
    if len({id(value) for value in values}) != len(values):  # tracing would take the two inputs for one
        msg = "two examples are the same tensor"
        raise ValueError(msg)
    dynamic = tuple(_dynamic(value, sizes) for value in values)
    with _quiet():
        traced = make_fx(
            flat, decomposition_table=_decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True
        )(*_fakes(values, dynamic))
        traced.graph.eliminate_dead_code()
        traced.recompile()
        exported = torch.export.export(_Flat(traced), values, dynamic_shapes=(dynamic,), strict=False)
        # Where sums of sizes must be alike (tokens behind a prefix), torch notes it for whoever runs what was exported,
        # and then fails over its own note. The graph is not run by torch.
        exported._guards_code = []  # noqa: SLF001 - nothing public does without the note
        program: Any = torch.onnx.export(exported, (), dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    return _with_names(program.model, examples, outputs, sizes)


class _Flat(torch.nn.Module):
    """torch.export takes modules; this one only calls."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *values: Tensor) -> Any:  # noqa: ANN401
        return self.traced(*values)


def _dynamic(value: Tensor, sizes: Sizes) -> dict[int, Any]:
    found = (sizes.batch, sizes.tokens)
    return {k: torch.export.Dim.DYNAMIC for k, length in enumerate(value.shape) if length in found}


def _fakes(values: Sequence[Tensor], dynamic: Sequence[Mapping[int, Any]]) -> list[Tensor]:
    """Stand-ins with sizes and no data: symbols where a dimension is dynamic, numbers elsewhere.

    make_fx would take every dimension of every weight for a symbol, and spend most of its time in algebra on them.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    return [
        mode.from_tensor(
            value,
            source=ConstantSource(f"input{index}"),
            symbolic_context=StatelessSymbolicContext(
                [DimDynamic.DYNAMIC if k in dims else DimDynamic.STATIC for k in range(value.ndim)]
            ),
        )
        for index, (value, dims) in enumerate(zip(values, dynamic, strict=True))
    ]


def _with_names(model: ir.Model, examples: Tensors, outputs: Sequence[str], sizes: Sizes) -> ir.Model:
    known = {sizes.batch: "batch", sizes.tokens: "tokens"}
    symbols: dict[str, str] = {}
    for value, (name, example) in zip(model.graph.inputs, examples.items(), strict=True):
        value.name = name
        symbols |= {str(dim): known[n] for dim, n in zip(value.shape or (), example.shape, strict=False) if n in known}
        value.shape = ir.Shape([known.get(n, n) for n in example.shape])
    for value in (value for node in model.graph for value in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
    for k, (value, name) in enumerate(zip(list(model.graph.outputs), outputs, strict=True)):
        node = ir.node(
            "Identity", [value]
        )  # an output of its own, whatever else the value is (an input, a second output)
        model.graph.append(node)
        node.outputs[0].name, node.outputs[0].type = name, value.type
        model.graph.outputs[k] = node.outputs[0]
    model.ir_version = IR_VERSION
    return model


def _renamed(dim: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str:
    """A dimension of an inner value, which the exporter calls s48 or 9*s16, in the names of the inputs' dimensions."""
    return dim if isinstance(dim, int) else re.sub(r"\w+", lambda word: symbols.get(word[0], word[0]), str(dim))


def _slice_backward(grad: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """Gradient of a slice as padding: torch's own decomposition scatters into zeros, index by index."""
    length = sizes[dim]
    begin = start + length if start < 0 else start
    if step != 1:
        return torch.slice_scatter(grad.new_zeros(sizes), grad, dim, start, end, step)
    return _padded(grad, dim, len(sizes), begin, length - begin - grad.shape[dim])


def _select_backward(grad: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    """Gradient of taking one index, as padding."""
    begin = index + sizes[dim] if index < 0 else index
    dim = dim % len(sizes)
    return _padded(grad.unsqueeze(dim), dim, len(sizes), begin, sizes[dim] - begin - 1)


def _padded(grad: Tensor, dim: int, dimensions: int, before: int, after: int) -> Tensor:
    if before == 0 and after == 0:
        return grad.clone()
    padding = [0, 0] * (dimensions - dim % dimensions - 1) + [before, after]
    return torch.constant_pad_nd(grad, padding, 0.0)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    aten = torch.ops.aten
    return {
        **core_aten_decompositions(),
        aten.slice_backward.default: _slice_backward,
        aten.select_backward.default: _select_backward,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from reporting on torchvision and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
