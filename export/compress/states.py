"""Kept blocks fitted to the hidden states of the whole model on public data: one after the other, in closed form.

In place of a block and those dropped behind it stands the block alone. The last product of its FFN, which takes the
neurons a of each token, gets a matrix with which the block gives, as nearly as it can, the state t that the whole model
has where the next kept block begins. Where it gives y with the matrix w,

    w' = w + E A^T (A A^T + r I)^-1        columns of E: (t - y) / |t|, of A: a / |t|;  r = RIDGE mean(diag A A^T)

so that every token counts by its relative error, and a block without any stays as it is, to the bit. Each gets what the
fitted blocks below it give: what they leave wrong, it can mend.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.compress.depth import ends
from export.compress.refit import with_ridge
from export.compress.width import ffn_of, matrix_of, set_matrix
from export.errors import UnsupportedError
from export.evaluate import ROWS, Images, Rows, inputs
from export.families import Family
from export.foundation import Foundation
from export.parts import Part, backbone_of, blocks_of
from export.public import seen


@dataclass(frozen=True, slots=True)
class Imitation:
    """A `student` that has kept some `layers` of its `teacher`, a model of `foundation`: both adapted, or neither."""

    foundation: Foundation
    student: nn.Module
    teacher: nn.Module
    layers: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    """Some rows on their way: where a token is, what all blocks need, and the states that two models have."""

    mask: Tensor
    context: dict[str, Tensor]
    wanted: Tensor
    found: Tensor


@torch.no_grad()
def fit_states(pair: Imitation, chosen: Collection[int], public: Rows) -> None:
    """Fit the student's blocks that are the `chosen` among its layers, in place.

    Raises UnsupportedError where a block does not end in adding what its FFN gives.
    """

    def fit(layer: int, part: Part, batches: Sequence[Batch]) -> None:
        if layer in chosen:
            _fit(part, batches)

    follow(pair, public, fit)


def follow(pair: Imitation, public: Rows, fit: Callable[[int, Part, Sequence[Batch]], None]) -> None:
    """Send public rows through both models, and have each block of the student fitted, one after the other: `fit` gets
    its layer, the block, and what there is to fit it to, and changes it in place.
    """
    family = pair.foundation.family
    whole, kept = ([family.block(b) for b in blocks_of(backbone_of(one))] for one in (pair.teacher, pair.student))
    batches = [_embedded(family, pair.teacher, public[k : k + ROWS]) for k in range(0, len(public), ROWS)]
    bounds = (0, *ends(pair.layers, len(whole)))
    for k, (layer, part) in enumerate(zip(pair.layers, kept, strict=True)):
        for batch in batches:
            for block in whole[bounds[k] : bounds[k + 1]]:
                batch.wanted = block(batch.wanted, batch.context)
        fit(layer, part, batches)
        for batch in batches:
            batch.found = part(batch.found, batch.context)


def _embedded(family: Family, model: nn.Module, rows: Rows) -> Batch:
    backbone: Any = backbone_of(model)
    embed = family.embed(backbone, 0)
    if isinstance(rows, Images):
        state = embed(rows.stretched(), {})
        mask = torch.ones(state.shape[:2], dtype=torch.bool)
    else:
        ids, mask = inputs(rows)
        state = embed(ids, {})
    return Batch(mask, family.context(backbone, mask.long()), state, state)


def _fit(part: Part, batches: Sequence[Batch]) -> None:
    """Fit one block to what is wanted of it."""
    takes = ffn_of(part.module).takes[1]
    matrix = matrix_of(takes)
    gain = _gain(part, takes, batches[0])
    moments = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    errors = torch.zeros(matrix.shape, dtype=torch.float64)
    with seen([takes]) as values:
        for batch in batches:
            y, t = (state[batch.mask].double() for state in (part(batch.found, batch.context), batch.wanted))
            a = values[0][0].reshape(*batch.mask.shape, -1)[batch.mask].double()
            size = t.norm(dim=1, keepdim=True).clamp(min=torch.finfo().tiny)
            moments += (a / size).T @ (a / size)
            errors += ((t - y) / size).T @ (a / size)
    change = torch.linalg.solve(with_ridge(moments), errors, left=False) / gain.double()[:, None]
    set_matrix(takes, matrix + change.to(matrix.dtype))


def _gain(part: Part, takes: nn.Module, batch: Batch) -> Tensor:
    """How much the block gives for each 1 more that its FFN gives (width,), which must be the same for every token."""
    before = part(batch.found, batch.context)
    handle = takes.register_forward_hook(lambda _module, _given, result: result + 1)
    try:
        moved = (part(batch.found, batch.context) - before)[batch.mask]
    finally:
        handle.remove()
    gain = moved.median(dim=0).values
    rounding = 1e-3 * gain.abs() + 1e-5 * before[batch.mask].abs()
    if not gain.all() or bool(((moved - gain).abs() > rounding).any()):
        msg = (
            f"a {type(part.module).__name__} does not add what its FFN gives to what it got: where layers are dropped, "
            "it cannot be refitted by least squares"
        )
        raise UnsupportedError(msg)
    return gain
