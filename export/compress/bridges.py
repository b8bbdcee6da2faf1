"""Bridges: what stands in an emulator for blocks that were dropped, once on the way there and once on the way back.

    y  = x + A n(x) + b        n(x) = x / sqrt(mean x^2)
    dx = dy + B dy             not the derivative of that

A bridge follows a kept block, in whose place the dropped ones would follow. y is as near as it can be to the state that
the whole model has where the next kept block begins, and dx to the gradient that the whole model has where the bridge
begins: the first is what the loss is of, the second is what an adapter below learns from, and what gives good states
has a poor derivative. Both are fitted in closed form to public data, the kept blocks stay the model's own, to the bit.

    A, b:  least squares of t - x on [n(x), 1], every token counting by its relative error, as in `states`
    B:     least squares of h - g on g, over tokens;  g: where the next kept block begins, h: where the bridge begins

Where steps of a distillation are asked for, A and b are then trained (`export.compress.distill`), where it can be along
the way that an adapter goes (`export.compress.way`), and B is fitted to both ends of that. While A trains, its way back
is its derivative.

The gradients are those of the predicted tokens' loss. Before a classifier, which has learnt no classes yet, they are of
a random direction of the last block's states at every token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from edge_sdk.wire.manifest import TaskType
from export.compress.depth import ends
from export.compress.refit import with_ridge
from export.compress.states import Batch, Imitation, follow
from export.evaluate import ROWS, Rows
from export.parts import Part, backbone_of, blocks_of, sizes_of
from export.public import arguments_of, mask_of, seen, token_losses

GRADIENT_RIDGE = 0.1  # of the gradients' mean square: they say little of each other, token by token
EPSILON = 1e-6


class Bridge(nn.Module):
    """`states` (width, width) is A, `shift` (width,) b, `gradients` (width, width) B: zeros, as it is made.

    Unless it is `called_apart`, its block calls it.
    """

    def __init__(self, width: int) -> None:
        """One that changes nothing."""
        super().__init__()
        self.called_apart = False
        self.states = nn.Parameter(torch.zeros(width, width), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.gradients = nn.Parameter(torch.zeros(width, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, tokens, width) -> y. Where A and b train, the way back is the derivative."""
        if self.states.requires_grad:
            return x + linear(_unit(x), self.states, self.shift)
        y: Tensor = _Crossing.apply(x, self.states, self.shift, self.gradients)  # type: ignore[no-untyped-call]
        return y


class _Crossing(torch.autograd.Function):
    """The two ways of a bridge. None of its matrices gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, states: Tensor, shift: Tensor, gradients: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(gradients)
        return x + linear(_unit(x), states, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (gradients,) = ctx.saved_tensors
        return grads[0] + linear(grads[0], gradients), None, None, None


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON)


def put_bridges(model: Any, layers: Iterable[int]) -> None:  # noqa: ANN401 - transformers' modules are typed by attribute
    """Have a bridge follow each of these blocks, in place; as yet they change nothing.

    It is a module of the block's, called behind it: the block's own parameters keep their names.
    """
    blocks: Any = blocks_of(backbone_of(model))
    width: int = sizes_of(model.config).hidden_size
    for layer in layers:
        blocks[layer].bridge = Bridge(width)
        blocks[layer].register_forward_hook(_cross)


def _cross(block: Any, _given: object, result: Any) -> Any:  # noqa: ANN401 - whatever a block gives
    if block.bridge.called_apart:
        return result
    if isinstance(result, tuple):
        return (block.bridge(result[0]), *result[1:])
    return block.bridge(result)


@contextmanager
def blocks_alone(model: nn.Module) -> Iterator[None]:
    """Meanwhile no block of `model` calls its bridge."""
    bridges = [module for module in model.modules() if isinstance(module, Bridge)]
    for bridge in bridges:
        bridge.called_apart = True
    try:
        yield
    finally:
        for bridge in bridges:
            bridge.called_apart = False


def is_of_bridge(name: str) -> bool:
    """Whether a parameter of this name, in a model or in a block, is one of a bridge's."""
    return "bridge" in name.split(".")


def bridges_of(pair: Imitation) -> dict[int, Bridge]:
    """The student's, by the layer that each follows."""
    blocks: list[Any] = list(blocks_of(backbone_of(pair.student)))
    return {layer: block.bridge for layer, block in zip(pair.layers, blocks, strict=True) if hasattr(block, "bridge")}


@torch.no_grad()
def fit_there(pair: Imitation, public: Rows) -> None:
    """Fit A and b of all bridges of the student, in place."""
    bridges = bridges_of(pair)

    def fit(layer: int, part: Part, batches: Sequence[Batch]) -> None:
        if layer in bridges:
            _fit(bridges[layer], part, batches)

    follow(pair, public, fit)


def _fit(bridge: Bridge, part: Part, batches: Sequence[Batch]) -> None:
    width = len(bridge.shift)
    moments = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    errors = torch.zeros(width, width + 1, dtype=torch.float64)
    for batch in batches:
        x, t = (state[batch.mask].double() for state in (part(batch.found, batch.context), batch.wanted))
        size = t.norm(dim=1, keepdim=True).clamp(min=torch.finfo().tiny)
        a = pad(_unit(x), (0, 1), value=1.0) / size
        moments += a.T @ a
        errors += ((t - x) / size).T @ a
    found = torch.linalg.solve(with_ridge(moments), errors, left=False)
    bridge.states.copy_(found[:, :width])
    bridge.shift.copy_(found[:, width])


def fit_back(pair: Imitation, found: Iterable[Sequence[Tensor]]) -> None:
    """Fit B of all bridges of the student, in place, to what `gradients` finds."""
    bridges, total = bridges_of(pair), len(blocks_of(backbone_of(pair.teacher)))
    after = dict(zip(pair.layers, ends(pair.layers, total), strict=True))
    moments = {layer: torch.zeros(bridge.states.shape, dtype=torch.float64) for layer, bridge in bridges.items()}
    errors = {layer: torch.zeros_like(moment) for layer, moment in moments.items()}
    for behind in found:
        for layer in bridges:
            g, h = behind[after[layer] - 1].double(), behind[layer].double()
            moments[layer] += g.T @ g
            errors[layer] += (h - g).T @ g
    with torch.no_grad():
        for layer, bridge in bridges.items():
            fitted = torch.linalg.solve(with_ridge(moments[layer], GRADIENT_RIDGE), errors[layer], left=False)
            bridge.gradients.copy_(fitted)


def gradients(pair: Imitation, public: Rows) -> Iterator[list[Tensor]]:
    """Of the whole model's states, behind each block at every token (tokens, width); some rows at a time."""
    teacher, blocks = pair.teacher, blocks_of(backbone_of(pair.teacher))
    predicts = pair.foundation.spec.task is TaskType.CAUSAL_LM
    generator = torch.Generator().manual_seed(0)
    for begin in range(0, len(public), ROWS):
        given = arguments_of(teacher, public[begin : begin + ROWS])
        with torch.enable_grad(), seen(list(blocks)) as passed:
            result = (teacher if predicts else backbone_of(teacher))(**given)
            states = [passed[k][1] for k in range(len(blocks))]
            mask = mask_of(given, states[0])
            if predicts:
                value = token_losses(result.logits, given).sum()
            else:
                direction = torch.randn(states[-1].shape, generator=generator)
                value = (states[-1] * direction * mask[..., None]).sum()
            found = torch.autograd.grad(value, states)
        yield [one[mask] for one in found]
