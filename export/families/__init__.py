"""Model families: where the blocks are, how they are called, what they need to know about a batch.

A **part** is a module of the model that becomes one structure (or the loss) of an artifact. A family names its parts;
what is frozen and what is trained in them is the adapter's business (`export.adapters`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.errors import UnsupportedError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
FAMILIES = ("llama", "gpt2", "bert")


@dataclass(frozen=True, slots=True)
class Part:
    """A module and how it is called.

    `arguments` makes the module's arguments of what flows in (hidden state or token ids) and the context by name.
    `context` lists what of the context it takes; `names` renames parameters where the artifact has a name of its own.
    """

    module: nn.Module
    arguments: Callable[[Tensor, Mapping[str, Tensor]], Arguments]
    context: tuple[str, ...]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """One family. Functions that take `backbone` take the model below its head, without any peft wrapper.

    - `blocks(backbone)`: its transformer blocks, which may be replaced by fewer of them
    - `embed`, `block`, `norm`, `head`: parts; `norm` is None where blocks flow into the head directly, `head` is the
      classifier of sequence classification, called with (hidden state, attention_mask) -> logits
    - `context(backbone, attention_mask)`: what all blocks need, by name; (batch, tokens) int64, 1 where a token is
    - `check(config)`: None, or why a model with this configuration is not supported
    - `targets`: the modules that LoRA adapts unless told otherwise
    """

    name: str
    tasks: tuple[TaskType, ...]
    targets: tuple[str, ...]
    backbone: Callable[[nn.Module], Any]
    blocks: Callable[[Any], nn.ModuleList]
    embed: Callable[[Any], Part]
    block: Callable[[nn.Module], Part]
    norm: Callable[[Any], Part | None]
    head: Callable[[Any], Part] | None
    context: Callable[[Any, Tensor], dict[str, Tensor]]
    check: Callable[[Any], str | None]


def family_of(model_type: str) -> Family:
    """The family of transformers' `model_type`. Raises UnsupportedError naming those that there are."""
    if model_type not in FAMILIES:
        msg = f"models of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)}"
        raise UnsupportedError(msg)
    family: Family = import_module(f"export.families.{model_type}").FAMILY
    return family


def additive_mask(allowed: Tensor) -> Tensor:
    """0 where `allowed`, else the least float32, so that a row that may see nothing sees all alike instead of NaN."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def causal_mask(attention_mask: Tensor) -> Tensor:
    """Additive (batch, 1, tokens, tokens): each token sees itself and those before it, and no padding."""
    positions = torch.arange(attention_mask.shape[1])
    causal = positions[None, :] <= positions[:, None]
    return additive_mask(causal[None, None] & (attention_mask[:, None, None, :] > 0))
