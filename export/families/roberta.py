"""RoBERTa: BERT's blocks under a classifier of two layers on the first token. https://arxiv.org/abs/1907.11692

Also XLM-RoBERTa and CamemBERT. Its positions begin behind the row of the padding token's id, in a matrix that has as
many rows more. transformers counts no position for a padding token *within* a text; there it stands as any other.
"""

from __future__ import annotations

from typing import Any

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import (
    Part,
    bidirectional_context,
    block_with_mask,
    classify_states,
    embed_for_encoder,
    refuse_decoder,
)


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
        TaskType.SEQUENCE_CLASSIFICATION: classify_states,
        TaskType.TOKEN_CLASSIFICATION: classify_states,
    },
    check=_check,
    max_tokens=_max_tokens,
    keys_values=("key", "value"),
    feedforward=("output.dense",),
    not_feedforward=("attention.output.dense",),
    idle=("key.bias",),
)
