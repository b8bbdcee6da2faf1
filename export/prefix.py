"""Prefixes: in every block, learned keys and values before those of its tokens. https://arxiv.org/abs/2101.00190

peft holds them all in one tensor, and gives them to the model as a cache of tokens that were read before. So the first
token stands at the position behind them. Here each block has its own, which train and travel apart, and are that one
tensor where peft asks for it.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.families import Family
from export.parts import Part

ADAPTER: Final = "default"  # what peft calls the one that there is
CACHES: Final = ("past_key_values", "layer_past")  # what blocks call the cache that they are given
SPREAD: Final = 0.02  # of the starting values, as wide as transformers draws embeddings
MASK_RANK: Final = 4


class Prefix(nn.Module):
    """One block's: `key` and `value` (heads, length, width of a head). To the block it is a cache."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Draw them."""
        super().__init__()
        self.key, self.value = (nn.Parameter(SPREAD * torch.randn(shape)) for _ in range(2))

    def update(self, key: Tensor, value: Tensor, *_layer: object) -> tuple[Tensor, Tensor]:
        """`key` and `value` (batch, heads, tokens, width of a head) behind them."""
        rows = key.shape[0]
        before = (own.expand(rows, -1, -1, -1) for own in (self.key, self.value))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        return keys, values


class Prefixes(nn.Module):
    """All blocks' prefixes, in the place of peft's own `encoder`."""

    def __init__(self, blocks: int, heads: int, length: int, width: int) -> None:
        """Draw them."""
        super().__init__()
        self.blocks = nn.ModuleList(Prefix((heads, length, width)) for _ in range(blocks))

    @property
    def weight(self) -> Tensor:
        """All of them as peft has them, (length, blocks x 2 x heads x width of a head)."""
        keys_and_values = tuple(self.blocks.parameters())  # in turn
        return torch.stack(keys_and_values).permute(2, 0, 1, 3).flatten(1)

    @property
    def embedding(self) -> Prefixes:
        """Where peft looks for `weight`."""
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """`weight` for each row of `tokens`."""
        return self.weight.expand(len(tokens), -1, -1)


class WithPrefix(nn.Module):
    """A block and its prefix, which all its tokens see."""

    def __init__(self, block: nn.Module, prefix: Prefix) -> None:
        """Share both."""
        super().__init__()
        self.base_layer, self.prefix = block, prefix
        self._cache = cache_of(block)

    def forward(self, x: Tensor, attention_mask: Tensor, **options: Any) -> Any:  # noqa: ANN401 - as the block's own
        """What the block makes of `x` (batch, tokens, width), its mask being of tokens alone."""
        mask = nn.functional.pad(attention_mask, (self.prefix.key.shape[1], 0))
        return self.base_layer(x, attention_mask=mask, **{self._cache: self.prefix}, **options)


def cache_of(block: nn.Module) -> str:
    """The name of the cache among a block's arguments; empty where it takes none."""
    known = inspect.signature(block.forward).parameters
    return next((name for name in CACHES if name in known), "")


def place_prefixes(adapted: Any) -> None:  # noqa: ANN401 - peft's models are typed by attribute
    """Put blocks' prefixes into a model of peft's prefix tuning, in the place of its one tensor."""
    encoder, config = adapted.prompt_encoder, adapted.active_peft_config
    heads = config.num_attention_heads
    encoder[ADAPTER] = Prefixes(config.num_layers, heads, config.num_virtual_tokens, config.token_dim // heads)


def prefixes_of(adapted: Any) -> list[Prefix]:  # noqa: ANN401
    """The prefixes of all blocks; none where the adapter is of another kind."""
    return list(adapted.prompt_encoder[ADAPTER].blocks) if hasattr(adapted, "prompt_encoder") else []


def context_behind(family: Family, backbone: Any, attention_mask: Tensor, before: int) -> dict[str, Tensor]:  # noqa: ANN401
    """The context of tokens of which the first stands at position `before`: the end of longer rows'. Masks are of these
    tokens alone.
    """
    if not before:
        return family.context(backbone, attention_mask)
    longer = family.context(backbone, nn.functional.pad(attention_mask, (before, 0), value=1))
    return {name: _end(table, before) for name, table in longer.items()}


def _end(table: Tensor, before: int) -> Tensor:
    """Of a mask (batch, 1, tokens or 1, tokens) or a table (1, tokens, width), what is of the last tokens."""
    if table.ndim == MASK_RANK:
        return table[..., before:] if table.shape[2] == 1 else table[:, :, before:, before:]
    return table[:, before:]


def with_prefix(part: Part, prefix: Prefix) -> Part:
    """A block with its prefix."""
    return Part(WithPrefix(part.module, prefix), part.arguments, part.context, part.names)
