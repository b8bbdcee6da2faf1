"""Prompts in every block: learned tokens that are put before a block's own and are gone behind it (VPT-deep).

Each block has prompts of its own, in the place of what the block below made of its. All its tokens see them, whatever
else they see. They stand at no position: what is rotated by position is not there, as at position 0, and a row's tokens
stay where they were. https://arxiv.org/abs/2203.12119, and for texts https://arxiv.org/abs/2110.07602
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from export.parts import backbone_of, blocks_of
from export.prefix import CACHES, MASK_RANK
from export.public import seen


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


@torch.no_grad()
def states_of_tokens(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What each block of a model gets of each of the tokens `ids` (n,) where it is all there is, (n, width).

    Prompts of a text begin as such. A token that stands first is one that others look at without harm, so a model with
    them does nearly what it does without. With vectors drawn by chance in every block SmolLM2 forgets its language.
    """
    backbone: Any = backbone_of(model)
    with seen(list(blocks_of(backbone))) as states:
        backbone(input_ids=ids[:, None], attention_mask=torch.ones_like(ids)[:, None])
    return [given[:, 0].clone() for _, (given, _) in sorted(states.items())]


class WithPrompt(nn.Module):
    """A block and its prompt of `size` tokens. In all else it is that block."""

    def __init__(self, block: nn.Module, size: int, width: int) -> None:
        """Share the block."""
        super().__init__()
        self.base_layer, self.size = block, size
        self.prompt = Prompt(size, width)
        self._signature = inspect.signature(block.forward)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a block has
        """What the block has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:  # noqa: ANN401 - as the block's own
        """What the block makes of `x` (batch, tokens, width) beside its prompt, its context being of tokens alone.

        Raises ValueError where it is given a cache, in which prompts would be anew for every token that is generated,
        or a mask that is not eager attention's.
        """
        given = self._signature.bind(self.prompt(x), *others, **options)
        for found in (given.arguments, given.arguments.get("kwargs", {})):
            if any(found.get(name) is not None for name in CACHES):
                msg = "prompts in blocks know no cache: give use_cache=False"
                raise ValueError(msg)
            if (mask := found.get("attention_mask")) is not None:
                found["attention_mask"] = self._mask(mask)
            if (tables := found.get("position_embeddings")) is not None:
                cos, sin = tables
                found["position_embeddings"] = self._longer(cos, 1.0), self._longer(sin, 0.0)
        result = self.base_layer(*given.args, **given.kwargs)
        return (result[0][:, self.size :], *result[1:]) if isinstance(result, tuple) else result[:, self.size :]

    def _mask(self, mask: Tensor) -> Tensor:
        """Additive or of truths, (batch, 1, tokens or 1, tokens). What prompts see is nowhere seen."""
        if mask.ndim != MASK_RANK:
            msg = "prompts in blocks know masks of eager attention alone: give attn_implementation='eager'"
            raise ValueError(msg)
        own_rows = 0 if mask.shape[2] == 1 else self.size
        return pad(mask, (self.size, 0, own_rows, 0), value=float(mask.dtype is torch.bool))

    def _longer(self, table: Tensor, value: float) -> Tensor:
        """Of (rows, tokens, width), prompts having this `value`."""
        return pad(table, (0, 0, self.size, 0), value=value)
