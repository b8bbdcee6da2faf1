"""DistilBERT: BERT without token types and pooler; its classifier has two layers. https://arxiv.org/abs/1910.01108"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import Part, bidirectional_context, block_with_mask, classify_states, embed_for_encoder


class Classifier(nn.Module):
    """Both layers of a `DistilBertForSequenceClassification`'s classifier as one module, without its dropout."""

    def __init__(self, pre_classifier: nn.Module, classifier: nn.Module) -> None:
        """Share the two modules."""
        super().__init__()
        self.pre_classifier = pre_classifier
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width)."""
        logits: Tensor = self.classifier(torch.relu(self.pre_classifier(x[:, 0])))
        return logits


def _classifier(model: Any) -> Part:  # noqa: ANN401 - transformers' modules are typed by attribute
    return Part(Classifier(model.pre_classifier, model.classifier))


FAMILY = Family(
    name="distilbert",
    model_types=("distilbert",),
    targets=("q_lin", "v_lin"),
    embed=lambda backbone, first: embed_for_encoder(backbone.embeddings, first),
    block=block_with_mask,
    norm=lambda _backbone: None,
    context=bidirectional_context,
    heads={
        TaskType.SEQUENCE_CLASSIFICATION: _classifier,
        TaskType.TOKEN_CLASSIFICATION: classify_states,
    },
    keys_values=("k_lin", "v_lin"),
    feedforward=("ffn.lin2",),
    idle=("k_lin.bias",),
)
