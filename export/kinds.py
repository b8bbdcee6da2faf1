"""The kinds of adapter: what each trains, and what of an adapter's configuration it takes.

Free of torch, so that a daemon can ask. What each is to peft, `export.adapters` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edge_sdk.wire.manifest import ModelSpec, TaskType

FACTORS = ("lora", "rslora")  # whose tensors are pairs of factors: never averaged apart
ALL_TASKS = frozenset(TaskType)


@dataclass(frozen=True, slots=True)
class Kind:
    """What it `trains`, in a few words; which of rank, alpha, targets, first, last and length it takes as `options`.

    Where it `needs` one of them that no default could be, that says what it is. `tasks` are those that it is for.
    """

    trains: str
    options: tuple[str, ...] = ()
    needs: str = ""
    tasks: frozenset[TaskType] = ALL_TASKS


KINDS = {
    "lora": Kind("two factors beside each target, scaled by alpha / rank", ("rank", "alpha", "targets")),
    "rslora": Kind("the same, scaled by alpha / sqrt(rank)", ("rank", "alpha", "targets")),
    "sparse": Kind("a random share of each target's weights, as many as factors of rank have", ("rank", "targets")),
    "ia3": Kind("a factor for each key, value and number within the feed-forward", ("targets",)),
    "bottleneck": Kind("two small products behind each target, of a width of rank", ("rank", "targets")),
    "prompt": Kind(
        "so many tokens before a row's, in each block anew, as VPT-deep does",
        ("length",),
        needs="how many tokens each block gets",
    ),
    "prefix": Kind(
        "so many keys and values before a text's, in each block",
        ("length",),
        needs="how many of them each block gets",
        tasks=ALL_TASKS - {TaskType.IMAGE_CLASSIFICATION},
    ),
    "bias": Kind("the biases, as BitFit does"),
    "layernorm": Kind("the norms' weights and biases"),
    "head": Kind("the classifier alone", tasks=ALL_TASKS - {TaskType.CAUSAL_LM}),
    "layers": Kind(
        "the first and the last so many blocks, whole, as CAFF and offsite-tuning do",
        ("first", "last"),
        needs="how many of the first and of the last blocks train",
    ),
    "full": Kind("all blocks, whole, and the norm above them"),
}


def why_not(kind: str, given: Mapping[str, object], task: TaskType | None = None) -> str | None:
    """None, or why there is no such adapter, in one line.

    `given` has its options by name; 0 or nothing where one was not given, but for rank and alpha, which always may be.
    `task` is what the model is tuned for, where that is known.
    """
    if kind not in KINDS:
        return f"adapters of kind {kind!r} are not supported; supported are {', '.join(KINDS)}"
    found = KINDS[kind]
    for name in ("targets", "first", "last", "length"):
        if given[name] and name not in found.options:
            return f"an adapter of kind {kind} takes no {name}; those of kind {', '.join(_taking(name))} do"
    if found.needs and not any(given[name] for name in found.options):
        return f"an adapter of kind {kind} needs {' or '.join(found.options)}, {found.needs}: give 1 or more"
    if task is not None and task not in found.tasks:
        allowed = ", ".join(one.value for one in TaskType if one in found.tasks)
        return f"an adapter of kind {kind} is for {allowed}, not for {task.value}: choose another kind"
    return None


def why_no_start(kind: str) -> str | None:
    """None, or why an adapter of this kind cannot begin from a sparse checkpoint: the end of a line."""
    if kind in FACTORS:
        return None
    return f"is for adapters of kind {' or '.join(FACTORS)}, this one is of kind {kind!r}"


class HasLength(Protocol):
    """An adapter, asked for or made."""

    @property
    def kind(self) -> str:
        """One of KINDS."""

    @property
    def length(self) -> int:
        """Of a prompt or a prefix, else 0."""


def taken_positions(adapter: HasLength) -> int:
    """How many positions it takes before a row's first token: to peft, a prefix is what was read before."""
    return adapter.length if adapter.kind == "prefix" else 0


def beside(adapter: HasLength, model: ModelSpec) -> ModelSpec:
    """The model as whoever trains it sees it: its rows are as long as the adapter leaves positions for."""
    return dataclasses.replace(model, max_tokens=model.max_tokens - taken_positions(adapter))


def _taking(option: str) -> list[str]:
    return [name for name, kind in KINDS.items() if option in kind.options]
