"""Model families, a file each: what is embedded how, how a block is called, what all blocks need to know of a batch.

What is frozen and what is trained in a family's parts is the adapter's business (`export.adapters`). Any module here
is a family: its `FAMILY` is found by the model types that it lists.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import transformers
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.errors import UnsupportedError
from export.parts import Part


def _all_positions(config: Any) -> int:  # noqa: ANN401 - transformers' configurations are typed by attribute
    found: int = config.max_position_embeddings
    return found


@dataclass(frozen=True, slots=True)
class Family:
    """One family. Functions that take `backbone` take the model below its head, without any peft wrapper.

    - `model_types`: what its models say in config.json
    - `targets`: the modules that LoRA adapts unless told otherwise
    - `keys_values`, `feedforward`: the modules whose outputs IA3 scales, and those that end a block's feed-forward: IA3
      scales their inputs, a bottleneck comes behind them. `not_feedforward` are others whose names end alike
    - `idle`: how the names of parameters end that the loss does not depend on: where positions are in the hidden state,
      a key's bias shifts all scores of a query alike, and their softmax does not see it
    - `embed`, `block`, `norm`: parts; `embed` is told the position of a row's first token, which texts alone have;
      `norm` is None where blocks flow into the head directly
    - `context(backbone, attention_mask)`: what all blocks need, by name; (batch, tokens) int64, 1 where a token is
    - `heads`: by task, the classifier as a part, called with (hidden state, attention_mask) -> logits, of each row or
      each token; None where the loss is over the vocabulary
    - `check(config)`: None, or why a model with this configuration is not supported
    - `max_tokens(config)`: how long a row can be; of a vision model, how long every row is
    """

    name: str
    model_types: tuple[str, ...]
    targets: tuple[str, ...]
    embed: Callable[[Any, int], Part]
    block: Callable[[nn.Module], Part]
    norm: Callable[[Any], Part | None]
    context: Callable[[Any, Tensor], dict[str, Tensor]]
    heads: Mapping[TaskType, Callable[[Any], Part] | None]
    check: Callable[[Any], str | None] = lambda _config: None
    max_tokens: Callable[[Any], int] = _all_positions
    keys_values: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    not_feedforward: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[TaskType, ...]:
        """What its models can be tuned for."""
        return tuple(self.heads)


def all_families() -> tuple[Family, ...]:
    """Every family that there is, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").FAMILY for name in names)


def family_of(model_type: str, keys: Iterable[str] = ()) -> Family:
    """The family of transformers' `model_type`, whose configuration has `keys`.

    Raises UnsupportedError that names the nearest family and what to do, when it is of none.
    """
    families = all_families()
    found = next((family for family in families if model_type in family.model_types), None)
    if found is None:
        near = max(families, key=lambda family: max(_likeness(set(keys), known) for known in family.model_types))
        msg = (
            f"models of type {model_type!r} are not supported, `fedpeat families` lists what is; the nearest family is "
            f"{near.name}: try the type in export/families/{near.name}.py, else add export/families/{model_type}.py"
        )
        raise UnsupportedError(msg)
    return found


def _likeness(keys: set[str], model_type: str) -> float:
    """The share of keys that a configuration has in common with those of `model_type`."""
    known = set(transformers.AutoConfig.for_model(model_type).to_dict())
    return len(keys & known) / len(keys | known)
