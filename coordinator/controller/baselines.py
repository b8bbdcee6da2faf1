"""The policies that a trained one is judged beside, each as it is by default; `fixed` with a level in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from coordinator.controller.compare import Make
from coordinator.controller.simulator import World
from coordinator.policy.fixed import Fixed
from coordinator.policy.kkt import Kkt
from coordinator.policy.registry import KINDS
from coordinator.policy.settings import PolicyName
from coordinator.policy.types import Policy

GREEDY: Final = PolicyName.FASTEST_THAT_FITS.value
# What is judged; and those that need a ladder of a kind, or a level of it.
_OTHERS: Final = {PolicyName.PPO, PolicyName.CAFF, PolicyName.FIXED}


def _as_it_is(kind: Callable[..., Policy[Any]]) -> Make:
    return lambda _world: kind()


def _fixed(world: World) -> Fixed:
    levels = world.profile.levels
    return Fixed(levels[len(levels) // 2].name)


def kkt_for(world: World) -> Kkt:
    """It knows how the model learns from the same runs as the simulator does."""
    return Kkt(people_power=min(world.profile.curve.people_power, 1.0))


BASELINES: Final[Mapping[str, Make]] = {
    **{name.value: _as_it_is(kind) for name, kind in KINDS.items() if name not in _OTHERS},
    PolicyName.FIXED.value: _fixed,
    PolicyName.KKT.value: kkt_for,
}
