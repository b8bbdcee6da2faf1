"""RoBERTa: BERT's blocks under a classifier of two layers on the first token. https://arxiv.org/abs/1907.11692

Also XLM-RoBERTa and CamemBERT. Its positions begin behind the row of the padding token's id, in a matrix that has as
many rows more. transformers counts no position for a padding token *within* a text; there it stands as any other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import (
    Part,
    bidirectional_context,
    block_with_mask,
    classify_each_token,
    embed_for_encoder,
    refuse_decoder,
)


class Classifier(nn.Module):
    """The classifier of a `RobertaForSequenceClassification`, its tensors named as in the model."""

    def __init__(self, classifier: nn.Module) -> None:
        """Share the module."""
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width)."""
        logits: Tensor = self.classifier(x)
        return logits


def _embed(backbone: Any, first: int) -> Part:  # noqa: ANN401 - transformers' modules are typed by attribute
    return embed_for_encoder(backbone.embeddings, backbone.config.pad_token_id + 1 + first)


def _max_tokens(config: Any) -> int:  # noqa: ANN401
    found: int = config.max_position_embeddings - config.pad_token_id - 1
    return found


def _check(config: Any) -> str | None:  # noqa: ANN401
    if config.pad_token_id is None:
        return f"a model of type {config.model_type!r} needs a pad_token_id: its positions begin behind it"
    return refuse_decoder(config)


FAMILY = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    targets=("query", "value"),
    embed=_embed,
    block=block_with_mask,
    norm=lambda _backbone: None,
    context=bidirectional_context,
    heads={
        TaskType.SEQUENCE_CLASSIFICATION: lambda model: Part(Classifier(model.classifier)),
        TaskType.TOKEN_CLASSIFICATION: classify_each_token,
    },
    check=_check,
    max_tokens=_max_tokens,
    keys_values=("key", "value"),
    feedforward=("output.dense",),
    not_feedforward=("attention.output.dense",),
    idle=("key.bias",),
)
