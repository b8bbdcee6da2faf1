"""Rounding to 4 bits that knows what a matrix is multiplied with, on public data.

GPTQ, https://arxiv.org/abs/2210.17323: columns are rounded one after the other, and what rounding a column did to the
product is made good, as far as it can be, by those that are not rounded yet. With the second moments of the inputs,

    H = a a^T + r I,  r = RIDGE mean(diag a a^T),    H^-1 = U^T U, U upper triangular
    e = (w[:, j] - w'[:, j]) / U[j, j]               w[:, j+1:] -= e U[j, j+1:]

Of the scales that a block of weights could have, it gets that with the least squared error, column j weighing
1 / U[j, j]^2: what an error there costs when all later columns do their best.

Each matrix is rounded for what it gets in the model that is not rounded. So it does not depend on how many bits the
others have, and levels which differ in that share it; docs/adr/0021-calibrated-rounding.md has what that costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edge_sdk.wire.tensors import Array
from export.compress.quantize import BLOCK, LEAST_BITS, MIDDLE, STORAGES, rounded
from export.compress.refit import second_moments, with_ridge
from export.compress.width import is_product, matrix_of
from export.evaluate import Rows
from export.parts import backbone_of, blocks_of
from export.public import run

RIDGE: Final = 1e-2  # GPTQ's
ROWS_AT_ONCE: Final = 8192
LARGEST: Final = (-8, -7, -9, -6, -10, 7, 8, 6, 9)  # of which a block's largest weight may be the nibble


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the parameters of a model in 32 bits are rounded: in 4 bits to what was found for them, where it was; else
    each weight to the nearest. `whole` is without peft's wrapper, `held` are parts as STORAGES has them.
    """

    whole: nn.Module
    held: Mapping[nn.Parameter, tuple[Array, ...]] = field(default_factory=dict)

    def of(self, parameter: nn.Parameter, bits: int) -> Tensor:
        """A matrix of the model as the graphs of a level compute with it."""
        if bits == LEAST_BITS and parameter in self.held:
            return torch.from_numpy(STORAGES[bits].value(self.held[parameter], parameter.shape[1]))
        return torch.from_numpy(rounded(parameter.detach().numpy(), bits))


@torch.no_grad()
def calibrated(model: Any, public: Rows, *, predicts: bool) -> Rounding:  # noqa: ANN401
    """How to round the frozen matrices that a model multiplies the states of all tokens with: of the products in its
    blocks, and where it `predicts` tokens the vocabulary's. The model is left as it is.
    """
    modules: list[Any] = [module for module in blocks_of(backbone_of(model)).modules() if is_product(module)]
    frozen = [module for module in modules if not module.weight.requires_grad]
    moments = zip(frozen, second_moments(model, frozen, public), strict=True)
    held = {module.weight: _held(module, of_inputs) for module, of_inputs in moments}
    vocabulary = model.get_output_embeddings() if predicts else None
    if vocabulary is not None and not vocabulary.weight.requires_grad:
        held[vocabulary.weight] = _held(vocabulary, _state_moments(model, public))
    return Rounding(model, held)


def _held(module: nn.Module, moments: Tensor) -> tuple[Array, ...]:
    """A product's parameter, whose rows are held in blocks: these are of inputs, but for a Conv1D of outputs."""
    matrix = matrix_of(module)
    in_columns = isinstance(module, Conv1D)
    found = on_grid(matrix, moments, along_inputs=not in_columns)
    return STORAGES[LEAST_BITS].hold((found.T if in_columns else found).contiguous().numpy())


def _state_moments(model: nn.Module, public: Rows) -> Tensor:
    """Second moments of the last hidden state."""
    return sum((state[mask].T @ state[mask]).double() for mask, state in run(model, public))  # type: ignore[return-value]


def on_grid(matrix: Tensor, moments: Tensor, *, along_inputs: bool = True) -> Tensor:
    """A matrix (out, in), float32, each block of whose weights is on a grid of 4 bits; inputs have these `moments`
    (in, in). Blocks are of neighbours in a row, or else in a column.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(with_ridge(moments, RIDGE)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    parts = [_rounded(rows.double(), upper, along_inputs=along_inputs) for rows in matrix.split(ROWS_AT_ONCE)]
    return torch.cat(parts).to(matrix.dtype)


def _rounded(rows: Tensor, upper: Tensor, *, along_inputs: bool) -> Tensor:
    """Some rows of a matrix, which are spent."""
    found, worth = torch.empty_like(rows), 1 / upper.diagonal().square()
    for begin in range(0, rows.shape[1], BLOCK):
        end = min(begin + BLOCK, rows.shape[1])
        scales = _best_scales(rows[:, begin:end], worth[begin:end])
        errors = torch.empty_like(rows[:, begin:end])
        for j in range(begin, end):
            column = rows[:, j]
            scale = scales if along_inputs else _scales_down(column)
            found[:, j] = _nibbles(column, scale) * scale
            errors[:, j - begin] = (column - found[:, j]) / upper[j, j]
            rows[:, j + 1 : end] -= errors[:, j - begin, None] * upper[j, j + 1 : end]
        rows[:, end:] -= errors @ upper[begin:end, end:]
    return found


def _scales_down(column: Tensor) -> Tensor:
    """For each weight of a column the scale of its block."""
    blocks = nn.functional.pad(column, (0, -len(column) % BLOCK)).reshape(-1, BLOCK)
    return _best_scales(blocks, torch.ones(BLOCK)).repeat_interleave(BLOCK)[: len(column)]


def _best_scales(blocks: Tensor, worth: Tensor) -> Tensor:
    """For each row of `blocks` (n, weights) a float16 scale (n,) of small error, squares weighed by `worth`.

    Infinite for weights beyond all that float16 could scale, which thus become no numbers: what holds them refuses.
    """
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    least = best = torch.full_like(largest, torch.inf)
    for nibble in LARGEST:
        scale = _usable(largest / nibble)
        held = _nibbles(blocks, scale)
        # The scale that is best for these nibbles, if they are not all zero; then those that are best for it.
        size = (worth * held * held).sum(1, keepdim=True)
        scale = torch.where(size > 0, _usable((worth * held * blocks).sum(1, keepdim=True) / size), scale)
        error = (worth * (_nibbles(blocks, scale) * scale - blocks).square()).sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best[:, 0]


def _usable(scale: Tensor) -> Tensor:
    """The nearest that float16 holds; 1 where that is nothing."""
    near = scale.half().to(scale.dtype)
    return torch.where(near == 0, 1.0, near)


def _nibbles(weights: Tensor, scale: Tensor) -> Tensor:
    return (weights / scale).round().clamp(-MIDDLE, MIDDLE - 1)
