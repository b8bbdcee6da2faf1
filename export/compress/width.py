"""Narrower blocks: each keeps the same share of its FFN's neurons, those with the largest weights.

FedPFT, https://arxiv.org/abs/2404.11536, section 3.2; as in its published code a neuron's saliency is the L2 norm of
all weights into it and out of it. Every block keeps as many, so that blocks of one structure stay so.

Where the FFN is, the tree of modules says: the products of a block outside its attention, the last of which takes the
neurons (width of the FFN -> width) that all others make (width -> width of the FFN). True of gate, up and down, of fc1
and fc2, of intermediate and output, and of GPT-2's transposed products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from export.errors import UnsupportedError

ATTENTION = "att"  # in the name of every attention: attn, self_attn, attention


@dataclass(frozen=True, slots=True)
class Ffn:
    """A block's FFN: the modules that make its neurons, and the one that takes them, by their paths in the block."""

    makes: Mapping[str, nn.Module]
    takes: tuple[str, nn.Module]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All of them, by path."""
        return dict([*self.makes.items(), self.takes])

    @property
    def neurons(self) -> int:
        """How many it has."""
        return matrix_of(self.takes[1]).shape[1]


def is_product(module: nn.Module) -> bool:
    """Whether a module is a product with a matrix, which `matrix_of` knows."""
    return isinstance(module, (nn.Linear, Conv1D))


def matrix_of(module: Any) -> Tensor:  # noqa: ANN401 - torch's modules are typed by attribute
    """The matrix (out, in) of a product, sharing its memory."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def set_matrix(module: Any, matrix: Tensor) -> None:  # noqa: ANN401
    """Give a product another matrix (out, in), of any size."""
    rows, columns = matrix.shape
    if isinstance(module, Conv1D):
        module.weight = nn.Parameter(matrix.T.contiguous())
        module.nf, module.nx = rows, columns
    else:
        module.weight = nn.Parameter(matrix.contiguous())
        module.out_features, module.in_features = rows, columns


def ffn_of(block: nn.Module) -> Ffn:
    """The FFN of a block. Raises UnsupportedError where the tree of modules does not show it."""
    found = {path: m for path, m in block.named_modules() if is_product(m) and ATTENTION not in path}
    if len(found) > 1:
        *makes, takes = found.items()
        width, neurons = matrix_of(takes[1]).shape
        if all(matrix_of(module).shape == (neurons, width) for _, module in makes):
            return Ffn(dict(makes), takes)
    msg = f"cannot slim a {type(block).__name__}: outside its attention, {_described(found)} are no FFN that is known"
    raise UnsupportedError(msg)


def neurons_kept(ffn: Ffn, share: float) -> Tensor:
    """The indices, in order, of the share of neurons that stay: at least one; of equals the earlier."""
    count = max(1, math.floor(share * ffn.neurons + 0.5))
    weights = torch.cat([*(matrix_of(module) for module in ffn.makes.values()), matrix_of(ffn.takes[1]).T], dim=1)
    saliency = weights.double().square().sum(dim=1)  # in 64 bits: no rounding decides which of two neurons stays
    return saliency.argsort(descending=True, stable=True)[:count].sort().values


def slim(ffn: Ffn, kept: Tensor) -> None:
    """Take all neurons out of an FFN but those `kept`; what stays is as it was, to the bit."""
    for module in ffn.makes.values():
        set_matrix(module, matrix_of(module)[kept])
        bias = getattr(module, "bias", None)
        if bias is not None:
            module.bias = nn.Parameter(bias.detach()[kept])
    takes = ffn.takes[1]
    set_matrix(takes, matrix_of(takes)[:, kept])


def _described(found: Mapping[str, nn.Module]) -> str:
    return ", ".join(f"{path} {tuple(matrix_of(module).shape)}" for path, module in found.items()) or "no products"
