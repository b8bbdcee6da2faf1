"""Llama and its kin: token embedding, decoder blocks with rotary positions, RMS norm, vocabulary projection.

SmolLM and TinyLlama declare themselves `llama`; Mistral may look back through a window only; Qwen2 has biases, Qwen3
norms on queries and keys. https://arxiv.org/abs/2302.13971
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from export.families import Family
from export.parts import (
    DECODER_HEADS,
    Part,
    block_with_rotary,
    blocks_of,
    causal_mask,
    embed_tokens,
    refuse_moving_rotary,
    rotary_tables,
)

MASK, WINDOW_MASK = "mask", "window_mask"


def _window(block: Any) -> int | None:  # noqa: ANN401 - transformers' modules are typed by attribute
    """How many tokens a block sees, its own among them, None for all: Qwen says it per block, Mistral for all."""
    attention = block.self_attn
    found: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return found


def _block(module: nn.Module) -> Part:
    return block_with_rotary(module, MASK if _window(module) is None else WINDOW_MASK)


def _context(backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    windows = dict.fromkeys(_window(block) for block in blocks_of(backbone))  # in order: equal input, equal bytes
    masks = {MASK if w is None else WINDOW_MASK: causal_mask(attention_mask, w) for w in windows}
    return masks | rotary_tables(backbone, attention_mask)


FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    targets=("q_proj", "v_proj"),
    embed=lambda backbone, _first: embed_tokens(backbone.embed_tokens),
    block=_block,
    norm=lambda backbone: Part(backbone.norm),
    context=_context,
    heads=DECODER_HEADS,
    check=refuse_moving_rotary,
    keys_values=("k_proj", "v_proj"),
    feedforward=("down_proj",),
)
