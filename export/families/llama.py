"""Llama: token embedding, decoder blocks with rotary positions, RMS norm, vocabulary projection.

Also SmolLM and other models that declare themselves `llama`. https://arxiv.org/abs/2302.13971
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Arguments, Family, Part, causal_mask

STATIC_ROTARY = ("default", "linear", "llama3")  # the others change their tables with the length of the input


def _backbone(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' modules are typed by attribute
    return model.model


def _blocks(backbone: Any) -> nn.ModuleList:  # noqa: ANN401
    layers: nn.ModuleList = backbone.layers
    return layers


def _embed(backbone: Any) -> Part:  # noqa: ANN401
    return Part(backbone.embed_tokens, lambda ids, _: ((ids,), {}), (), {"weight": "matrix"})


def _block(module: nn.Module) -> Part:
    return Part(module, _block_arguments, ("mask", "cos", "sin"), {})


def _block_arguments(x: Tensor, context: Mapping[str, Tensor]) -> Arguments:
    return (x,), {"attention_mask": context["mask"], "position_embeddings": (context["cos"], context["sin"])}


def _norm(backbone: Any) -> Part:  # noqa: ANN401
    return Part(backbone.norm, lambda x, _: ((x,), {}), (), {})


def _context(backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    positions = torch.arange(attention_mask.shape[1])
    cos, sin = backbone.rotary_emb(torch.zeros(1), positions[None])
    return {"mask": causal_mask(attention_mask), "cos": cos, "sin": sin}


def _check(config: Any) -> str | None:  # noqa: ANN401
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in STATIC_ROTARY:
        return f"rotary positions of type {kind!r} are not supported; supported are {', '.join(STATIC_ROTARY)}"
    return None


FAMILY = Family(
    name="llama",
    tasks=(TaskType.CAUSAL_LM,),
    targets=("q_proj", "v_proj"),
    backbone=_backbone,
    blocks=_blocks,
    embed=_embed,
    block=_block,
    norm=_norm,
    head=None,
    context=_context,
    check=_check,
)
