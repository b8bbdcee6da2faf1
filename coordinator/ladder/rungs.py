"""Which levels are worth having: pure functions over what was measured.

A level is worth having unless another is as small and as lean, and closes as much of the gap. Measurements vary, so
that they are compared in steps: 1 % of the bytes, 5 % of the least peak, a hundredth of the gap.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edge_sdk.wire.blobs import Blob

SIZE_STEP, PEAK_STEP = math.log(1.01), math.log(1.05)
SHARE_STEP = 0.01


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """A plan of a step, as predicted from measured costs: its peak, and its time with all weights in memory."""

    peak_bytes: int
    step_ms: float


@dataclass(frozen=True, slots=True)
class Tune:
    """The tune of an adapter on the emulator, by the fastest plan within a budget: what was promised, and measured."""

    budget_bytes: int
    predicted_bytes: int
    peak_bytes: int
    step_ms: float
    loss_first: float
    loss_last: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Held-out losses, in nats per predicted token or per row; accuracies are None for a language model.

    `emulator_before` is the emulator's with the adapter as it starts, `emulator` with the tuned one; `plug_in` is the
    full model's with that one.
    """

    emulator_before: float
    emulator: float
    plug_in: float
    emulator_accuracy: float | None = None
    plug_in_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One level. `plans` leanest first: the first is the level's least budget. `new_bytes` is what a device that holds
    another level has to fetch for this one, by that level's name, of `size_bytes` in all; `is_whole` if no layer is
    dropped.
    """

    name: str
    is_whole: bool
    size_bytes: int
    new_bytes: Mapping[str, int]
    plans: tuple[PlanPoint, ...]
    tune: Tune
    quality: Quality

    @property
    def needs_bytes(self) -> int:
        """The peak of the leanest plan."""
        return self.plans[0].peak_bytes


def spaced(plans: Sequence[PlanPoint]) -> tuple[PlanPoint, ...]:
    """Of plans, leanest first, the leanest, the last, and between them those a step of peaks above the one before."""
    found = list(plans[:1])
    for plan in plans[1:]:
        if math.log(plan.peak_bytes / found[-1].peak_bytes) >= PEAK_STEP or plan is plans[-1]:
            found.append(plan)
    return tuple(found)


def gap_closed(zero_shot: float, tuned: float, plug_in: float) -> float:
    """The share of the way from the full model's loss to that of the full model tuned itself; 1: all of it.

    Raises ValueError where tuning the full model has gained nothing: there is no gap.
    """
    if not tuned < zero_shot:
        msg = (
            f"tuning the full model itself took its loss from {zero_shot:.4f} to {tuned:.4f}: there is no gap to close"
        )
        raise ValueError(msg)
    return (zero_shot - plug_in) / (zero_shot - tuned)


def worth_having(levels: Sequence[Measured], closed: Mapping[str, float]) -> tuple[Measured, ...]:
    """The ladder, smallest first. `closed` are shares of the gap by level.

    Every level that is left out has one on the ladder that is as good. One that keeps all layers is always there, for a
    fleet's adapter starts from its values.
    """
    costs = {one.name: _costs(one, closed[one.name]) for one in levels}

    def comes_first(one: Measured) -> tuple[float, float, float, str]:
        return one.size_bytes, one.needs_bytes, -closed[one.name], one.name

    found: list[Measured] = []
    for level in sorted(levels, key=lambda one: (costs[one.name], comes_first(one))):
        if not any(_no_worse(costs[one.name], costs[level.name]) for one in found):
            found.append(level)
    if not any(one.is_whole for one in found):
        found.append(min((one for one in levels if one.is_whole), key=lambda one: (-closed[one.name], one.name)))
    return tuple(sorted(found, key=comes_first))


def _costs(level: Measured, closed: float) -> tuple[int, int, int]:
    """What a level costs, in steps: bytes, least peak, and the gap that it leaves open."""
    return (
        round(math.log(level.size_bytes) / SIZE_STEP),
        round(math.log(level.needs_bytes) / PEAK_STEP),
        round(-closed / SHARE_STEP),
    )


def _no_worse(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def size_bytes(blobs: Collection[Blob]) -> int:
    """Bytes of the blobs, equal ones counted once."""
    return sum(blob.size_bytes for blob in set(blobs))


def new_bytes(blobs: Collection[Blob], held: Collection[Blob]) -> int:
    """Bytes of those blobs that are not held."""
    return size_bytes(set(blobs) - set(held))
