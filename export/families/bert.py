"""BERT: embeddings with learned positions, encoder blocks, a classifier on the pooled first token.

Also MiniLM and other models that declare themselves `bert`. https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import (
    Part,
    backbone_of,
    bidirectional_context,
    block_with_mask,
    classify_states,
    embed_for_encoder,
    refuse_decoder,
)


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


def _classifier(model: Any) -> Part:  # noqa: ANN401 - transformers' modules are typed by attribute
    return Part(PooledClassifier(backbone_of(model).pooler, model.classifier))


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    targets=("query", "value"),
    embed=lambda backbone, first: embed_for_encoder(backbone.embeddings, first),
    block=block_with_mask,
    norm=lambda _backbone: None,
    context=bidirectional_context,
    heads={
        TaskType.SEQUENCE_CLASSIFICATION: _classifier,
        TaskType.TOKEN_CLASSIFICATION: classify_states,
    },
    check=refuse_decoder,
    keys_values=("key", "value"),
    feedforward=("output.dense",),
    not_feedforward=("attention.output.dense",),
    idle=("key.bias",),
)
