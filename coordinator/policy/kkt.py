"""The analytic policy: levels, codecs, participants and bandwidth by the conditions of Karush, Kuhn and Tucker.

It seeks the most value per second of a round, value being that of `coordinator.controller.learning`:

    people^people_power x sum of w_i quality_i / (T + between)

where w_i is device i's part of the examples, people 1 / sum of w_i^2, and between what rounds take beside their tasks.

For devices with compute times c_i and b_i bytes over the link, a bandwidth B to be split, and links of their own that
do r_i, the soonest that all can be done is

    T = max(max_i c_i + b_i / r_i,  the T at which the sum over i of b_i / (T - c_i) is B)

since the sum falls as T grows, and at the optimum of a min-max under a bound on a sum all for which the bound is active
end together; each gets b_i / (T - c_i) of B. What to give to whom within T is a knapsack: by its Lagrangian each device
takes the level and codec, or nothing, with most of its value less price x needed rate; the price is what makes the
rates fit in B, and who is left at that price joins by value per rate. The value of one device depends on who else takes
part; it is taken to first order around those of the T before. T runs down a grid from where everybody takes part at the
best level to where the fastest device is alone at its fastest: the slowest are pruned, or given lower levels, while
value per second grows. The idea is that of https://arxiv.org/abs/2309.01816, which prunes models in closed form under a
bound on the latency; the levels here are few and measured, so that they are enumerated.

It knows what `estimates` knows: of devices that never took part the usual. What fades within the round it does not see.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coordinator.policy.arrays import Bools, Floats
from coordinator.policy.costs import Costs
from coordinator.policy.fitting import Known
from coordinator.policy.sharing import finish_s
from coordinator.policy.types import Choice, Decision, Observation
from edge_sdk.wire.messages import DeltaCodec

Picked: TypeAlias = NDArray[np.int64]  # (N,): the option of each device, or OUT

OUT: Final = -1
TIMES: Final = 24  # of the grid
HALVINGS: Final = 10  # of the price
LEAST: Final = 1e-9  # a share, seconds


@dataclass(frozen=True, slots=True)
class Kkt:
    """`people_power` is how much more a round of more people brings, as fitted to real runs in `learning`; `between_s`
    what the coordinator takes to aggregate and to evaluate.
    """

    people_power: float = 0.5
    between_s: float = 60.0

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The best round that was found; see the module."""
        known = state.after(observation.answers)
        # Whom it does not matter which of is taken: those that were heard of longest ago.
        devices = tuple(sorted(observation.devices, key=lambda device: (device.last_round, device.name)))
        costs = Costs.of(dataclasses.replace(observation, devices=devices), known)
        if not costs.allowed.any():
            return Decision({}), known
        options = _Options.of(costs)
        best = _search(options, self.people_power, self.between_s)
        shares = options.shares(best)
        choices = {}
        for row in np.flatnonzero(best != OUT):
            level, codec = options.named[best[row]]
            choices[devices[row].name] = Choice(level, codec, float(shares[row]))
        return Decision(choices), known


@dataclass(frozen=True, slots=True)
class _Options:
    """N devices, K options each: a level with a codec, `named`. `alone_s` is a task that has all the bandwidth."""

    named: list[tuple[str, DeltaCodec]]
    allowed: Bools  # (N, K)
    wire_bytes: Floats  # (N, K)
    compute_s: Floats  # (N, K)
    alone_s: Floats  # (N, K), infinite where it is not allowed
    worth: Floats  # (K,)
    link_bytes_s: Floats  # (N,)
    examples: Floats  # (N,)
    bandwidth_bytes_s: float
    deadline_s: float

    @staticmethod
    def of(costs: Costs) -> _Options:
        """Without codecs that another is better than in every way."""
        n, kept = len(costs.devices), _undominated(costs)
        allowed = np.repeat(costs.allowed, len(kept), axis=1)
        alone_s = np.where(allowed, costs.task_s(1.0)[:, :, kept].reshape(n, -1), np.inf)
        return _Options(
            named=[(level.name, costs.codecs[codec]) for level in costs.levels for codec in kept],
            allowed=allowed,
            wire_bytes=costs.wire_bytes[:, :, kept].reshape(n, -1),
            compute_s=np.repeat(costs.compute_s, len(kept), axis=1),
            alone_s=alone_s,
            worth=costs.worth[:, kept].reshape(-1),
            link_bytes_s=costs.rate_bytes_s,
            examples=costs.examples,
            bandwidth_bytes_s=costs.bandwidth_bytes_s,
            deadline_s=costs.deadline_s,
        )

    def everybody(self) -> Picked:
        """The option that is worth most of each device, the fastest of several."""
        worth = np.where(self.allowed, self.worth, -np.inf)
        fastest = np.where(worth == worth.max(axis=1, keepdims=True), self.alone_s, np.inf).argmin(axis=1)
        return np.where(self.allowed.any(axis=1), fastest, OUT)

    def fastest_alone(self) -> Picked:
        """One device with one option."""
        row, option = np.unravel_index(self.alone_s.argmin(), self.alone_s.shape)
        picked = np.full(len(self.examples), OUT)
        picked[row] = option
        return picked

    def value(self, picked: Picked, people_power: float) -> float:
        """What the round is worth, as in the module."""
        rows = np.flatnonzero(picked != OUT)
        weights = self.examples[rows] / self.examples[rows].sum()
        return float(np.square(weights).sum() ** -people_power * (weights @ self.worth[picked[rows]]))

    def gains(self, picked: Picked, people_power: float) -> Floats:
        """(N, K): by what share the value grows with each option of each device, to first order around `picked`."""
        rows, weight = np.flatnonzero(picked != OUT), self.examples
        there = weight[rows]
        worth = max(float(there @ self.worth[picked[rows]]), LEAST)
        of_weight = (2 * people_power - 1) * weight / there.sum() - people_power * np.square(weight / there.sum()) / (
            np.square(there / there.sum()).sum()
        )
        gains: Floats = of_weight[:, None] + weight[:, None] * self.worth[None, :] / worth
        return gains

    def within(self, seconds: float, gains: Floats) -> Picked:
        """Who takes part with what so that all are done within `seconds`, for about the greatest sum of `gains`."""
        link = self.link_bytes_s[:, None]
        rate = _rate(self.wire_bytes, seconds - self.compute_s, link)
        possible = self.allowed & (self.compute_s + self.wire_bytes / link <= seconds * (1 + LEAST))
        gains, rate = np.where(possible, gains, -np.inf), np.where(possible, rate, 0.0)
        most = float((gains / np.maximum(rate, 1.0)).max())
        if most <= 0:
            return np.full(len(gains), OUT)
        low, high = most * LEAST, most  # a price of next to nothing: of options that gain as much the least rate
        picked = _at_price(gains, rate, low)
        if self._used(rate, picked) <= self.bandwidth_bytes_s:
            return picked
        for _ in range(HALVINGS):
            price = math.sqrt(low * high)
            if self._used(rate, _at_price(gains, rate, price)) <= self.bandwidth_bytes_s:
                high = price
            else:
                low = price
        return self._that_fit(gains, rate, _at_price(gains, rate, low))

    def _used(self, rate: Floats, picked: Picked) -> float:
        rows = np.flatnonzero(picked != OUT)
        return float(rate[rows, picked[rows]].sum())

    def _that_fit(self, gains: Floats, rate: Floats, picked: Picked) -> Picked:
        """Those that gain most per rate, as long as there is bandwidth."""
        rows = np.flatnonzero(picked != OUT)
        gain, need = gains[rows, picked[rows]], rate[rows, picked[rows]]
        order = np.argsort(-gain / np.maximum(need, 1.0), kind="stable")
        fit = rows[order[np.cumsum(need[order]) <= self.bandwidth_bytes_s]]
        left = np.full(len(picked), OUT)
        left[fit] = picked[fit]
        return left

    def finish_s(self, picked: Picked) -> float:
        """When the last of them is done, with the bandwidth split as it should be."""
        _, wire_bytes, compute_s, link = self._of(picked)
        soonest = float((compute_s + wire_bytes / link).max())
        if not math.isfinite(self.bandwidth_bytes_s):
            return soonest
        return max(soonest, finish_s(wire_bytes, compute_s, self.bandwidth_bytes_s))

    def shares(self, picked: Picked) -> Floats:
        """(N,): of the bandwidth, the largest 1; no matter for those that are out."""
        rows, wire_bytes, compute_s, link = self._of(picked)
        rate = _rate(wire_bytes, self.finish_s(picked) - compute_s, link)
        shares = np.ones(len(picked))
        shares[rows] = np.clip(rate / rate.max(), LEAST, 1.0) if rate.max() > 0 else 1.0
        return shares

    def _of(self, picked: Picked) -> tuple[Picked, Floats, Floats, Floats]:
        rows = np.flatnonzero(picked != OUT)
        options = picked[rows]
        return rows, self.wire_bytes[rows, options], self.compute_s[rows, options], self.link_bytes_s[rows]


def _search(options: _Options, people_power: float, between_s: float) -> Picked:
    """The round of most value per second on the grid of times, see the module; nobody is given more than the deadline,
    but for the fastest device where all estimates are beyond it.
    """

    def rated(picked: Picked) -> float:
        return options.value(picked, people_power) / max(between_s + options.finish_s(picked), LEAST)

    around, best = options.everybody(), options.fastest_alone()
    most, first = rated(best), max(float(options.alone_s.min()), LEAST)
    if first > options.deadline_s:
        return best
    last = max(min(options.finish_s(around), options.deadline_s), first)
    for seconds in np.geomspace(last, first, TIMES):
        picked = options.within(float(seconds), options.gains(around, people_power))
        if (picked == OUT).all():
            continue
        around = picked
        if rated(picked) > most:
            best, most = picked, rated(picked)
    return best


def _undominated(costs: Costs) -> list[int]:
    """Codecs than which no other is worth as much in as few bytes, at every level; of equal ones the first."""
    up = costs.wire_bytes[0]  # down is the same for all codecs

    def better(a: int, b: int) -> bool:
        no_worse = bool((up[:, a] <= up[:, b]).all() and (costs.worth[:, a] >= costs.worth[:, b]).all())
        equal = bool((up[:, a] == up[:, b]).all() and (costs.worth[:, a] == costs.worth[:, b]).all())
        return no_worse and (a < b or not equal)

    codecs = range(len(costs.codecs))
    return [b for b in codecs if not any(better(a, b) for a in codecs if a != b)]


def _at_price(gains: Floats, rate: Floats, price: float) -> Picked:
    """The option of each device with most gain above what its rate costs, or none."""
    above = gains - price * rate
    best = above.argmax(axis=1)
    return np.where(np.take_along_axis(above, best[:, None], axis=1)[:, 0] > 0, best, OUT)


def _rate(wire_bytes: Floats, left_s: Floats, link_bytes_s: Floats) -> Floats:
    """What is needed to send the bytes in the time that is left; no more than the link does."""
    rate: Floats = wire_bytes / np.maximum(left_s, np.maximum(wire_bytes / link_bytes_s, LEAST))
    return rate
