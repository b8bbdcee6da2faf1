"""A run's own fleet, simulated: worlds around what its ledger knows of devices, levels and how the model learns.

What devices said and showed is taken as it is, give or take SPREAD: budgets, threads, rates, slowness, examples, how
often they answered. What no ledger knows is drawn by lot as in training: what moves, how data are mixed, batteries.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.controller import radio
from coordinator.controller.calibrate import CalibrationError, calibrated, run_of
from coordinator.controller.fleets import BOARDS, GROUPS, SCENARIOS, Population
from coordinator.controller.profile import Profile
from coordinator.controller.simulator import World
from coordinator.controller.worlds import MOST, MOST_LEVELS, ROUNDS, Grounds
from coordinator.decision_log import read_decisions
from coordinator.policy.arrays import Floats
from coordinator.policy.estimates import Usual, known_or
from coordinator.policy.types import DeviceView, Observation

SPREAD: Final = 0.15  # of what was measured, as a logarithm
GUESSED: Final = 0.4  # of what is only usual
PLACED_M: Final = 30.0  # from the station; a channel's width then makes the rate
WIDEST_HZ: Final = 1e12
HALVINGS: Final = 100
TRAINING, CHOOSING = 11, 12  # the first number of a seed
CHOSEN_BY: Final = 2  # worlds of each scenario


@dataclass(frozen=True, slots=True)
class Twin:
    """What a ledger knows: the run's `profile`, all devices of its fleet, and what held for its last round."""

    profile: Profile
    last: Observation

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        """Every device that took part or could have."""
        return self.last.fleet or self.last.devices

    def world(self, seed: Sequence[int], scenario: str) -> World:
        """One world; of a larger fleet than training takes, some of the devices."""
        rng, terms = np.random.default_rng(seed), self.last.terms
        some = sorted(rng.choice(len(self.devices), size=min(len(self.devices), MOST), replace=False))
        return World(
            profile=self.profile,
            population=population([self.devices[k] for k in some], Usual.of(self.devices), rng),
            conditions=SCENARIOS[scenario],
            seed=int(rng.integers(1 << 31)),
            rounds=min(terms.rounds, ROUNDS),
            deadline_s=terms.deadline_s,
            bandwidth_bytes_s=known_or(terms.bandwidth_bytes_s, math.inf),
        )

    def grounds(self) -> Grounds:
        """For training."""
        names = tuple(SCENARIOS)
        return Grounds(
            self.profile,
            lambda rng: self.world((TRAINING, int(rng.integers(1 << 31))), names[rng.integers(len(names))]),
            tuple(self.world((CHOOSING, k, i), name) for i, name in enumerate(names) for k in range(CHOSEN_BY)),
        )


def twin_of(path: pathlib.Path) -> Twin:
    """What the ledger at `path` knows. Raises LedgerError; CalibrationError where that is too little."""
    last = None
    for logged in read_decisions(path):
        last = logged.observation
    if last is None or not (last.fleet or last.devices):
        msg = f"{path} has no decision so far: there is no fleet to simulate"
        raise CalibrationError(msg)
    if len(last.levels) > MOST_LEVELS:
        msg = f"{path} has {len(last.levels)} levels; a policy is trained on {MOST_LEVELS} at most"
        raise CalibrationError(msg)
    found = calibrated([run_of(path)], {level.name: level.quality for level in last.levels})
    terms = last.terms
    source = f"the run of {path}"
    profile = Profile(last.levels, found.curve, terms.steps, terms.adapter_bytes, terms.codecs, source)
    return Twin(profile, last)


def population(devices: Sequence[DeviceView], usual: Usual, rng: np.random.Generator) -> Population:
    """These devices, once more."""
    count = len(devices)
    slowness, known = _or_usual([device.slowness for device in devices], usual.slowness)
    slowness = slowness * np.exp(np.where(known, SPREAD, GUESSED) * rng.standard_normal(count))
    rates, known = _or_usual([device.rate_bytes_s for device in devices], usual.rate_bytes_s)
    rates = rates * np.exp(np.where(known, SPREAD, GUESSED) * rng.standard_normal(count))
    examples, _ = _or_usual([device.examples for device in devices], usual.examples)
    boards = [min(BOARDS, key=lambda board: abs(math.log(board.slowness / slow))) for slow in slowness]
    angle = rng.uniform(0, 2 * np.pi, count)
    silent = np.array([device.asked - device.answered for device in devices], dtype=float)
    answered = np.array([device.answered for device in devices], dtype=float)
    drained = np.array([device.battery < 1 for device in devices])
    return Population(
        budgets_bytes=np.array([device.budget_bytes for device in devices], dtype=float),
        threads=np.array([max(device.threads, 1) for device in devices], dtype=float),
        slowness=slowness,
        idle_w=np.array([board.idle_w for board in boards]),
        busy_w=np.array([board.busy_w for board in boards]),
        examples=examples,
        mixtures=rng.dirichlet(np.full(GROUPS, 10 ** rng.uniform(-1, 1)), count),
        places_m=PLACED_M * np.stack([np.cos(angle), np.sin(angle)], axis=1),
        widths_hz=width_hz(rates),
        shadows_db=np.zeros(count),
        losing=rng.beta(np.maximum(silent, 0) + 0.1, answered + 5),
        battery_j=np.where(drained, rng.uniform(5e3, 4e4, count), np.inf),
        charge_w=rng.uniform(0, 3, count),
    )


def width_hz(rates_bytes_s: Floats) -> Floats:
    """Channels on which a device at PLACED_M, shadowed and faded by nothing, gets these rates from its station."""
    gains = radio.gain(np.full(len(rates_bytes_s), PLACED_M), np.zeros(len(rates_bytes_s)), np.ones(len(rates_bytes_s)))
    low, high = np.zeros(len(gains)), np.full(len(gains), WIDEST_HZ)
    for _ in range(HALVINGS):  # a rate grows with its channel
        middle = (low + high) / 2
        less = radio.rate_bytes_s(middle, radio.DOWN_W, gains) < rates_bytes_s
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return high


def _or_usual(values: Sequence[float], usual: float) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The values, and which of them are known."""
    found = np.array([known_or(value) for value in values], dtype=float)
    return np.where(found > 0, found, usual), found > 0
