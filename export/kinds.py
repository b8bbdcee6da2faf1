"""The kinds of adapter: what each trains, and what of an adapter's configuration it takes.

Free of torch, so that a daemon can ask. What each is to peft, `export.adapters` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FACTORS = ("lora", "rslora")  # whose tensors are pairs of factors: never averaged apart


@dataclass(frozen=True, slots=True)
class Kind:
    """What it `trains`, in a few words, and which of rank, alpha, targets and last it takes as `options`."""

    trains: str
    options: tuple[str, ...] = ()


KINDS = {
    "lora": Kind("two factors beside each target, scaled by alpha / rank", ("rank", "alpha", "targets")),
    "rslora": Kind("the same, scaled by alpha / sqrt(rank)", ("rank", "alpha", "targets")),
    "ia3": Kind("a factor for each key, value and number within the feed-forward", ("targets",)),
    "bottleneck": Kind("two small products behind each target, of a width of rank", ("rank", "targets")),
    "bias": Kind("the biases, as BitFit does"),
    "layernorm": Kind("the norms' weights and biases"),
    "head": Kind("the classifier alone"),
    "layers": Kind("the last so many blocks, whole, as CAFF does", ("last",)),
    "full": Kind("all blocks, whole, and the norm above them"),
}


def why_not(kind: str, targets: Sequence[str], last: int, *, classifies: bool) -> str | None:
    """None, or why there is no such adapter, in one line; `classifies` where the model has a classifier."""
    if kind not in KINDS:
        return f"adapters of kind {kind!r} are not supported; supported are {', '.join(KINDS)}"
    options = KINDS[kind].options
    for name, given in (("targets", bool(targets)), ("last", bool(last))):
        if given and name not in options:
            return f"an adapter of kind {kind} takes no {name}; those of kind {', '.join(_taking(name))} do"
    if "last" in options and last < 1:
        return f"an adapter of kind {kind} needs last, how many of the last blocks train: give 1 or more"
    if kind == "head" and not classifies:
        return "an adapter of kind head is for classifiers; a language model has none: choose another kind"
    return None


def _taking(option: str) -> list[str]:
    return [name for name, kind in KINDS.items() if option in kind.options]
