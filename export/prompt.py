"""Prompts in every block: learned tokens that are put before a block's own and are gone behind it (VPT-deep).

Each block has prompts of its own, in the place of what the block below made of its. Where attention knows no positions
within a block, as in vision models, it does not matter where they stand. https://arxiv.org/abs/2203.12119
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Prompt(nn.Module):
    """The tokens of one block, `weight` (length, width)."""

    def __init__(self, length: int, width: int) -> None:
        """Draw them, as wide as VPT does for ViT-B/16, whose patches have as many numbers as its hidden state."""
        super().__init__()
        bound = math.sqrt(3 / width)
        self.weight = nn.Parameter(torch.empty(length, width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, tokens, width) behind them."""
        return torch.cat([self.weight.expand(x.shape[0], -1, -1), x], dim=1)


class WithPrompt(nn.Module):
    """A block and its prompt of `size` tokens."""

    def __init__(self, block: nn.Module, size: int, width: int) -> None:
        """Share the block."""
        super().__init__()
        self.base_layer, self.size = block, size
        self.prompt = Prompt(size, width)

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:  # noqa: ANN401 - whatever a block takes
        """What the block makes of `x` (batch, tokens, width) beside its prompt."""
        y: Tensor = self.base_layer(self.prompt(x), *others, **options)
        return y[:, self.size :]
