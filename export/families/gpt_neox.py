"""GPT-NeoX: token embedding, decoder blocks whose halves stand side by side, rotary positions in part of each head.

Also Pythia and other models that declare themselves `gpt_neox`. https://arxiv.org/abs/2204.06745
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from export.families import Family
from export.parts import (
    DECODER_HEADS,
    Part,
    block_with_rotary,
    causal_context,
    embed_tokens,
    refuse_moving_rotary,
    rotary_tables,
)


def _context(backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401 - typed by attribute
    return causal_context(backbone, attention_mask) | rotary_tables(backbone, attention_mask)


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    targets=("query_key_value",),
    embed=lambda backbone, _first: embed_tokens(backbone.embed_in),
    block=block_with_rotary,
    norm=lambda backbone: Part(backbone.final_layer_norm),
    context=_context,
    heads=DECODER_HEADS,
    check=refuse_moving_rotary,
    keys_values=("query_key_value",),
    feedforward=("dense_4h_to_h",),
)
