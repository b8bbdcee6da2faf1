"""GPT-2: token and position embeddings, decoder blocks, layer norm, vocabulary projection.

Also DistilGPT2 and other models that declare themselves `gpt2`. https://openai.com/index/better-language-models/

Its products are `Conv1D` modules, y = x w + b with w (in, out): the artifact holds w as the checkpoint does, so at 8
bits it has one scale per input. peft knows the module, and notes `fan_in_fan_out` in what it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Arguments, Family, Part, causal_mask


class Embeddings(nn.Module):
    """Token and position embedding of a `GPT2Model` as one module, without its dropout."""

    def __init__(self, wte: nn.Module, wpe: nn.Module) -> None:
        """Share the two modules."""
        super().__init__()
        self.wte = wte
        self.wpe = wpe

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden state (batch, tokens, width) of ids (batch, tokens)."""
        positions = torch.arange(ids.shape[1])[None]
        hidden: Tensor = self.wte(ids) + self.wpe(positions)
        return hidden


def _backbone(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' modules are typed by attribute
    return model.transformer


def _blocks(backbone: Any) -> nn.ModuleList:  # noqa: ANN401
    layers: nn.ModuleList = backbone.h
    return layers


def _embed(backbone: Any) -> Part:  # noqa: ANN401
    module = Embeddings(backbone.wte, backbone.wpe)
    return Part(module, lambda ids, _: ((ids,), {}), (), {"wte.weight": "matrix"})


def _block(module: nn.Module) -> Part:
    return Part(module, _block_arguments, ("mask",), {})


def _block_arguments(x: Tensor, context: Mapping[str, Tensor]) -> Arguments:
    return (x,), {"attention_mask": context["mask"]}


def _norm(backbone: Any) -> Part:  # noqa: ANN401
    return Part(backbone.ln_f, lambda x, _: ((x,), {}), (), {})


def _context(_backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    return {"mask": causal_mask(attention_mask)}


def _check(config: Any) -> str | None:  # noqa: ANN401
    if config.add_cross_attention:
        return "GPT-2 with cross-attention is not supported, only by itself"
    if config.scale_attn_by_inverse_layer_idx:
        return "attention scaled by the layer's number is not supported: all blocks share their graphs"
    return None


FAMILY = Family(
    name="gpt2",
    tasks=(TaskType.CAUSAL_LM,),
    targets=("c_attn",),
    backbone=_backbone,
    blocks=_blocks,
    embed=_embed,
    block=_block,
    norm=_norm,
    head=None,
    context=_context,
    check=_check,
)
