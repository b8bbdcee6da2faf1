"""Fleets that there might be: boards around measured ones, on links and with data that are drawn by lot.

A board's `slowness` is how many times longer it takes for a step than the machine on which the profile was measured.
Conditions say what moves from round to round; SCENARIOS are those that policies are judged in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.policy.arrays import Floats

GROUPS: Final = 4  # of data
SHAKY: Final = 0.2  # of the devices lose one task in ten, or up to every second
CELL_M: Final = 450.0  # boards are within so many metres of their station


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of board: memory that it can give, threads, slowness, and watts idle and at full work."""

    memory_bytes: float
    threads: int
    slowness: float
    idle_w: float
    busy_w: float
    often: float


# Slowness: a core's matrix products against the machine's that the profile was measured on, from the peak GFLOPS of the
# boards' cores; watts as their makers and reviews give them. The spread around them is drawn.
BOARDS: Final = (
    Board(0.25e9, 4, 14.0, 0.6, 2.0, 1.0),  # Pi Zero 2 W
    Board(0.5e9, 4, 9.0, 1.5, 4.0, 1.0),  # Pi 3 B+
    Board(1.5e9, 4, 4.5, 2.7, 6.4, 2.0),  # Pi 4
    Board(3e9, 4, 2.0, 3.0, 9.0, 2.0),  # Pi 5
    Board(2e9, 4, 5.0, 2.0, 8.0, 1.0),  # Jetson Nano, its processor alone
    Board(4e9, 6, 2.2, 5.0, 12.0, 1.0),  # Jetson Orin Nano, its processor alone
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What changes between rounds; 0 is not at all.

    `speed_m` a device moves; `fading` from 0, none, to 1, Rayleigh, anew each round; of those present the share `leave`
    goes, of the others `return_` come back; `throttle` is the chance that a board that works with all its threads gets
    hot, and then works at a half;
    `taken` the chance that something else takes up to a half of its memory; `drift` the chance that the data of a group
    change, which takes back a part of what was learned.
    """

    speed_m: float = 0.0
    fading: float = 0.0
    leave: float = 0.0
    return_: float = 0.5
    throttle: float = 0.0
    taken: float = 0.0
    drift: float = 0.0


SCENARIOS: Final[Mapping[str, Conditions]] = {
    "stationary": Conditions(),
    "mobility": Conditions(speed_m=80.0),
    "fading": Conditions(fading=1.0),
    "churn": Conditions(leave=0.2),
    "throttling": Conditions(throttle=0.15),
    "memory": Conditions(taken=0.25),
    "drift": Conditions(drift=0.1),
    "everything": Conditions(40.0, 0.5, 0.1, 0.5, 0.1, 0.1, 0.05),
}


@dataclass(frozen=True, slots=True)
class Population:
    """A fleet of N devices; arrays of N, `mixtures` of N x G with rows that sum to 1.

    `widths_hz` are the devices' channels; `losing` is the chance that a task has no result for no reason that anybody
    could see; `battery_j` is infinite for a device on the mains.
    """

    budgets_bytes: Floats
    threads: Floats
    slowness: Floats
    idle_w: Floats
    busy_w: Floats
    examples: Floats
    mixtures: Floats
    places_m: Floats  # N x 2, the station is at the origin
    widths_hz: Floats
    shadows_db: Floats
    losing: Floats
    battery_j: Floats
    charge_w: Floats

    def __len__(self) -> int:
        """N."""
        return len(self.budgets_bytes)


def draw(count: int, rng: np.random.Generator) -> Population:
    """A fleet by lot: how skewed its data are, and how far apart its boards, is drawn too."""
    often = np.array([board.often for board in BOARDS])
    mix = rng.dirichlet(2 * often)  # one fleet is all of Pis, another of everything
    kinds = [BOARDS[k] for k in rng.choice(len(BOARDS), size=count, p=mix)]
    spread = rng.uniform(0.0, 0.35)
    radius = CELL_M * np.sqrt(rng.uniform(0, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    on_battery = rng.uniform(0, 1, count) < rng.uniform(0, 0.5)
    alpha = 10 ** rng.uniform(-1, 1)  # 0.1: nearly one group each; 10: nearly alike
    return Population(
        budgets_bytes=np.array([b.memory_bytes for b in kinds]) * rng.uniform(0.3, 0.9, count),
        threads=np.array([float(b.threads) for b in kinds]),
        slowness=np.array([b.slowness for b in kinds]) * np.exp(spread * rng.standard_normal(count)),
        idle_w=np.array([b.idle_w for b in kinds]),
        busy_w=np.array([b.busy_w for b in kinds]),
        examples=np.round(100 * np.exp(rng.uniform(0, 1) * rng.standard_normal(count))) + 10,
        mixtures=rng.dirichlet(np.full(GROUPS, alpha), count),
        places_m=np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1),
        widths_hz=rng.choice([1.4e6, 5e6, 20e6], size=count, p=[0.25, 0.45, 0.3]),
        shadows_db=rng.normal(0, 6, count),
        losing=np.where(rng.uniform(0, 1, count) < SHAKY, rng.uniform(0.1, 0.5, count), 0.01),
        battery_j=np.where(on_battery, rng.uniform(5e3, 4e4, count), np.inf),
        charge_w=rng.uniform(0, 3, count),
    )
