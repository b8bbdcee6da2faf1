"""The policies that a trained one is judged beside, each as it is by default; `fixed` with a level in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from coordinator.config import PolicyName
from coordinator.controller.compare import Make
from coordinator.controller.simulator import World
from coordinator.policy.fixed import Fixed
from coordinator.policy.registry import KINDS
from coordinator.policy.types import Policy

GREEDY: Final = PolicyName.FASTEST_THAT_FITS.value


_OF_LADDERS: Final = {PolicyName.CAFF, PolicyName.FIXED}  # what they need is not the same in every world


def _as_it_is(kind: Callable[..., Policy[Any]]) -> Make:
    return lambda _world: kind()


def _fixed(world: World) -> Fixed:
    levels = world.profile.levels
    return Fixed(levels[len(levels) // 2].name)


BASELINES: Final[Mapping[str, Make]] = {
    **{name.value: _as_it_is(kind) for name, kind in KINDS.items() if name not in _OF_LADDERS},
    PolicyName.FIXED.value: _fixed,
}
