"""GPT-2: token and position embeddings, decoder blocks, layer norm, vocabulary projection.

Also DistilGPT2 and other models that declare themselves `gpt2`. https://openai.com/index/better-language-models/

Its products are `Conv1D` modules, y = x w + b with w (in, out): the artifact holds w as the checkpoint does, so at 8
bits it has one scale per input. peft knows the module, and notes `fan_in_fan_out` in what it saves.
"""

from __future__ import annotations

from typing import Any

from export.families import Family
from export.parts import DECODER_HEADS, Part, block_with_mask, causal_context, embed_tokens_and_positions


def _check(config: Any) -> str | None:  # noqa: ANN401 - transformers' configurations are typed by attribute
    if config.add_cross_attention:
        return "GPT-2 with cross-attention is not supported, only by itself"
    if config.scale_attn_by_inverse_layer_idx:
        return "attention scaled by the layer's number is not supported: all blocks share their graphs"
    return None


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    targets=("c_attn",),
    embed=lambda backbone, first: embed_tokens_and_positions(backbone.wte, backbone.wpe, first),
    block=block_with_mask,
    norm=lambda backbone: Part(backbone.ln_f),
    context=causal_context,
    heads=DECODER_HEADS,
    check=_check,
    keys_values=("c_attn",),
    feedforward=("mlp.c_proj",),
)
