"""Parts of a model: modules, how they are called, and what is alike in many families.

A **part** is a module that becomes one structure (or the loss) of an artifact. Backbone and blocks are found, with
optimum's normalised configuration and in the tree of modules; all else a family (`export.families`) names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.errors import UnsupportedError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
STATIC_ROTARY = ("default", "linear", "llama3")  # the others change their tables with the length of the input


@dataclass(frozen=True, slots=True)
class Part:
    """A module and how it is called.

    `arguments` makes the module's arguments of what flows in (hidden state or token ids) and the context by name.
    `context` lists what of the context it takes; `names` renames parameters where the artifact has a name of its own.
    """

    module: nn.Module
    arguments: Callable[[Tensor, Mapping[str, Tensor]], Arguments] = lambda x, _: ((x,), {})
    context: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, x: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """What the module makes of `x`."""
        arguments, options = self.arguments(x, context)
        result = self.module(*arguments, **options)
        found: Tensor = result[0] if isinstance(result, tuple) else result
        return found


# ------------------------------------------------------------------------------------------------ what is found


def sizes_of(config: Any) -> Any:  # noqa: ANN401 - transformers' configurations are typed by attribute
    """`num_layers`, `hidden_size` and `vocab_size`, whatever a configuration calls them.

    A type that optimum does not list, or that it lists without layers (vision), is taken to call them as most do;
    AttributeError where it does not.
    """
    try:
        found = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        return NormalizedTextConfig(config)
    return found if found.has_attribute("num_layers") else NormalizedTextConfig(config)


def backbone_of(model: Any) -> Any:  # noqa: ANN401
    """The model below its head; `model` is without any peft wrapper."""
    return model.base_model


def blocks_of(backbone: Any) -> nn.ModuleList:  # noqa: ANN401
    """The transformer blocks, which may be replaced by fewer of them: the outermost list of as many modules as the
    configuration says that there are layers. Raises UnsupportedError where there is none.
    """
    config = backbone.config
    layers = sizes_of(config).num_layers
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList))
    found = next((module for module in lists if len(module) == layers), None)
    if found is None:
        msg = f"cannot find the {layers} blocks of a model of type {config.model_type!r}: it has no list of so many"
        raise UnsupportedError(msg)
    return found


def keep_layers(model: Any, layers: Sequence[int]) -> None:  # noqa: ANN401
    """Drop all blocks of `model` but these, in place."""
    blocks = blocks_of(backbone_of(model))
    kept = [blocks[k] for k in layers]
    del blocks[:]
    blocks.extend(kept)
    model.config.num_hidden_layers = len(kept)  # some families count, some iterate
    if kinds := getattr(model.config, "layer_types", None):  # and some ask by number which mask a block takes
        model.config.layer_types = [kinds[k] for k in layers]


# ------------------------------------------------------------------------------------------------ embeddings


class TokensAndPositions(nn.Module):
    """Token and position embedding as one module, without dropout; the first token's position is row `first`."""

    def __init__(self, tokens: nn.Module, positions: nn.Module, first: int) -> None:
        """Share the two modules."""
        super().__init__()
        self.tokens = tokens
        self.positions: Any = positions
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden state (batch, tokens, width) of ids (batch, tokens)."""
        rows = torch.arange(ids.shape[1])[None] + self.first
        # The matrix, not the module: OPT's makes rows of an attention mask.
        hidden: Tensor = self.tokens(ids) + nn.functional.embedding(rows, self.positions.weight)
        return hidden


def embed_tokens(tokens: nn.Module) -> Part:
    """Nothing but the tokens' embedding."""
    return Part(tokens, names={"weight": "matrix"})


def embed_tokens_and_positions(tokens: nn.Module, positions: nn.Module, first: int) -> Part:
    """The sum of two embeddings; the first token's position is row `first` of the second."""
    return Part(TokensAndPositions(tokens, positions, first), names={"tokens.weight": "matrix"})


def embed_for_encoder(embeddings: nn.Module, first: int) -> Part:
    """BERT's module of tokens, positions from row `first`, and types (all of them the first) under a norm."""

    def arguments(ids: Tensor, _context: Mapping[str, Tensor]) -> Arguments:
        # Positions and types are given, not left to the module's buffers: a buffer would fix the largest length.
        given = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None] + first}
        types = {"token_type_ids": torch.zeros_like(ids)} if hasattr(embeddings, "token_type_embeddings") else {}
        return (), given | types

    return Part(embeddings, arguments, names={"word_embeddings.weight": "matrix"})


# ------------------------------------------------------------------------------------------------ blocks


def block_with_mask(module: nn.Module) -> Part:
    """A block that takes the hidden state and an additive mask."""
    return Part(module, lambda x, context: ((x,), {"attention_mask": context["mask"]}), ("mask",))


def block_with_rotary(module: nn.Module, mask: str = "mask") -> Part:
    """A block that takes the context's `mask` by that name, and rotary positions."""

    def arguments(x: Tensor, context: Mapping[str, Tensor]) -> Arguments:
        return (x,), {"attention_mask": context[mask], "position_embeddings": (context["cos"], context["sin"])}

    return Part(module, arguments, (mask, "cos", "sin"))


# ------------------------------------------------------------------------------------------------ heads


class LastToken(nn.Module):
    """The classifier of a decoder: `score` on the hidden state of each row's last token."""

    def __init__(self, score: nn.Module) -> None:
        """Share the module."""
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width), rows padded on the right."""
        last = torch.arange(x.shape[1])[None] == attention_mask.sum(dim=1, keepdim=True) - 1
        # As a product with one-hot positions: its gradient is a product too, where a look-up's would be a scatter.
        logits: Tensor = self.score(last[:, None].to(x.dtype) @ x)[:, 0]
        return logits


def classify_last_token(model: Any) -> Part:  # noqa: ANN401
    """The head of a decoder's `ForSequenceClassification`."""
    return Part(LastToken(model.score), lambda x, given: ((x, given["attention_mask"]), {}))


class OfStates(nn.Module):
    """An encoder's classifier that takes the hidden state of all tokens, its tensors named as in the model."""

    def __init__(self, classifier: nn.Module) -> None:
        """Share the module."""
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, tokens, classes) of the hidden state (batch, tokens, width), or (batch, classes) where the
        classifier looks at one token of its choice.
        """
        logits: Tensor = self.classifier(x)
        return logits


def classify_states(model: Any) -> Part:  # noqa: ANN401
    """The head of an encoder's `ForTokenClassification`, and of RoBERTa's `ForSequenceClassification`."""
    return Part(OfStates(model.classifier))


DECODER_HEADS = {TaskType.CAUSAL_LM: None, TaskType.SEQUENCE_CLASSIFICATION: classify_last_token}


# ------------------------------------------------------------------------------------------------ context


def causal_context(_backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    """`mask`: each token sees itself and those before it, and no padding."""
    return {"mask": causal_mask(attention_mask)}


def bidirectional_context(_backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    """`mask`: each token sees all that is no padding."""
    return {"mask": additive_mask(attention_mask[:, None, None, :] > 0)}


def rotary_tables(backbone: Any, attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    """`cos` and `sin` (1, tokens, rotated width of a head) of a backbone whose `rotary_emb` makes them."""
    positions = torch.arange(attention_mask.shape[1])
    cos, sin = backbone.rotary_emb(torch.zeros(1), positions[None])
    return {"cos": cos, "sin": sin}


def causal_mask(attention_mask: Tensor, window: int | None = None) -> Tensor:
    """Additive (batch, 1, tokens, tokens): each token sees itself and those before it, and no padding.

    With a `window`, it and the `window` - 1 before it.
    """
    positions = torch.arange(attention_mask.shape[1])
    seen = positions[None, :] <= positions[:, None]
    if window is not None:
        seen = seen & (positions[:, None] < positions[None, :] + window)
    return additive_mask(seen[None, None] & (attention_mask[:, None, None, :] > 0))


def additive_mask(allowed: Tensor) -> Tensor:
    """0 where `allowed`, else the least float32, so that a row that may see nothing sees all alike instead of NaN."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


# ------------------------------------------------------------------------------------------------ why not


def refuse_moving_rotary(config: Any) -> str | None:  # noqa: ANN401
    """Why not, for a model whose rotary tables depend on the length of its input."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in STATIC_ROTARY:
        return f"rotary positions of type {kind!r} are not supported; supported are {', '.join(STATIC_ROTARY)}"
    return None


def refuse_decoder(config: Any) -> str | None:  # noqa: ANN401
    """Why not, for an encoder that is configured as a decoder."""
    if config.is_decoder or config.add_cross_attention:
        return f"a model of type {config.model_type!r} is not supported as a decoder, only as an encoder"
    return None
