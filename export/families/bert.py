"""BERT: embeddings with learned positions, encoder blocks, a classifier on the pooled first token.

Also MiniLM and other models that declare themselves `bert`. https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Arguments, Family, Part, additive_mask


class PooledClassifier(nn.Module):
    """Pooler and classifier of a `BertForSequenceClassification` as one module, without its dropout."""

    def __init__(self, pooler: nn.Module, classifier: nn.Module) -> None:
        """Share the two modules."""
        super().__init__()
        self.pooler = pooler
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width)."""
        logits: Tensor = self.classifier(self.pooler(x))
        return logits


def _backbone(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' modules are typed by attribute
    return model.bert


def _blocks(backbone: Any) -> nn.ModuleList:  # noqa: ANN401
    layers: nn.ModuleList = backbone.encoder.layer
    return layers


def _embed(backbone: Any) -> Part:  # noqa: ANN401
    return Part(backbone.embeddings, _embed_arguments, (), {"word_embeddings.weight": "matrix"})


def _embed_arguments(ids: Tensor, _context: Mapping[str, Tensor]) -> Arguments:
    # Positions and token types are given, not left to the module's buffers: a buffer would fix the largest length.
    return (), {
        "input_ids": ids,
        "position_ids": torch.arange(ids.shape[1])[None],
        "token_type_ids": torch.zeros_like(ids),
    }


def _block(module: nn.Module) -> Part:
    return Part(module, lambda x, context: ((x, context["mask"]), {}), ("mask",), {})


def _no_norm(_backbone: Any) -> None:  # noqa: ANN401
    return None


def _head(model: Any) -> Part:  # noqa: ANN401
    return Part(PooledClassifier(model.bert.pooler, model.classifier), lambda x, _: ((x,), {}), (), {})


def _context(_backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    return {"mask": additive_mask(attention_mask[:, None, None, :] > 0)}


def _check(config: Any) -> str | None:  # noqa: ANN401
    if config.is_decoder or config.add_cross_attention:
        return "BERT as a decoder is not supported, only as an encoder"
    return None


FAMILY = Family(
    name="bert",
    tasks=(TaskType.SEQUENCE_CLASSIFICATION,),
    targets=("query", "value"),
    backbone=_backbone,
    blocks=_blocks,
    embed=_embed,
    block=_block,
    norm=_no_norm,
    head=_head,
    context=_context,
    check=_check,
)
