"""OPT: token and position embeddings, decoder blocks, layer norm, vocabulary projection.

https://arxiv.org/abs/2205.01068. Its positions begin in the third row of their matrix.
"""

from __future__ import annotations

from typing import Any

from export.families import Family
from export.parts import DECODER_HEADS, Part, block_with_mask, causal_context, embed_tokens_and_positions


def _embed(backbone: Any, first: int) -> Part:  # noqa: ANN401 - transformers' modules are typed by attribute
    tokens, positions = backbone.decoder.embed_tokens, backbone.decoder.embed_positions
    return embed_tokens_and_positions(tokens, positions, positions.offset + first)


def _norm(backbone: Any) -> Part | None:  # noqa: ANN401
    norm = backbone.decoder.final_layer_norm
    return None if norm is None else Part(norm)


def _check(config: Any) -> str | None:  # noqa: ANN401
    if config.word_embed_proj_dim != config.hidden_size:
        return "OPT with embeddings narrower than its blocks (opt-350m) is not supported"
    return None


FAMILY = Family(
    name="opt",
    model_types=("opt",),
    targets=("q_proj", "v_proj"),
    embed=_embed,
    block=block_with_mask,
    norm=_norm,
    context=causal_context,
    heads=DECODER_HEADS,
    check=_check,
    keys_values=("k_proj", "v_proj"),
    feedforward=("fc2",),
    idle=("k_proj.bias",),
)
