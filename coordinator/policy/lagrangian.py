"""Budgets with prices: dual variables for delay, bytes and memory, as in CAFL-L, https://arxiv.org/abs/2510.03298.

Each round the price of a budget that was exceeded rises, and that of one that was kept falls, never below 0:

    price <- max(0, price + price_step (used / budget - 1))        the bracket at most 1

used is what the answers of the last closed round showed: the longest task's seconds (of a lost one the deadline), the
mean bytes over the link, the largest share of a device's memory budget. Then each device gets what has most of

    quality of the level, as far as the codec leaves it - sum over budgets of price x estimated use / budget

or sits out where nothing has more than 0; where all would, the one that has most takes part. That is the Lagrangian's
primal step, by enumeration, for it falls apart by devices. CAFL-L turns other knobs (depth, steps, batch, compression)
by formulas in its prices; quality here is measured. Dual ascent needs the usage to follow the prices within a round;
where no choice keeps a budget its price rises until everybody sits out but one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordinator.policy.arrays import Floats
from coordinator.policy.by_round import ByRound, lasted_s
from coordinator.policy.costs import Costs
from coordinator.policy.estimates import known_or
from coordinator.policy.fitting import Known
from coordinator.policy.types import Answer, Choice, Decision, Observation, Outcome, Terms

LEAST_S: Final = 1e-3  # of a budget


@dataclass(frozen=True, slots=True)
class Prices:
    """In quality per budget."""

    delay: float = 0.0
    bytes: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True, slots=True)
class Priced:
    """What is known of fitting, the answers of open rounds, and the prices so far."""

    known: Known = field(default_factory=Known)
    heard: ByRound = field(default_factory=ByRound)
    prices: Prices = Prices()


@dataclass(frozen=True, slots=True)
class Lagrangian:
    """`budget_s` is for a round (0: a quarter of its deadline), `budget_bytes` for a task (0: what an equal part of the
    bandwidth brings in `budget_s`, no bound where there is none), `budget_memory` a share of a device's own budget.
    """

    budget_s: float = 0
    budget_bytes: int = 0
    budget_memory: float = 1.0
    price_step: float = 0.5

    def initial(self) -> Priced:
        """All is free."""
        return Priced()

    def decide(self, observation: Observation, state: Priced) -> tuple[Decision, Priced]:
        """What has most quality at these prices for each device; see the module."""
        known = state.known.after(observation.answers)
        heard = state.heard.with_answers(observation.answers)
        ended, left = heard.closing_before(observation.terms.round)
        budgets, prices = self._budgets(observation), state.prices
        for _, answers in ended:
            prices = self._after(prices, _used(answers.values(), observation.terms), budgets)
        costs = Costs.of(observation, known)
        return Decision(_cheapest(costs, _scores(costs, prices, budgets))), Priced(known, left, prices)

    def _budgets(self, observation: Observation) -> Prices:
        """Seconds, bytes and a share; infinite where there is no bound."""
        terms = observation.terms
        seconds = self.budget_s or (terms.deadline_s / 4 if terms.deadline_s > 0 else math.inf)
        part = terms.bandwidth_bytes_s / max(len(observation.devices), 1)
        wire_bytes = self.budget_bytes or (part * seconds if part > 0 else math.inf)
        return Prices(max(seconds, LEAST_S), max(wire_bytes, 1.0), self.budget_memory)

    def _after(self, prices: Prices, used: Prices, budgets: Prices) -> Prices:
        def step(price: float, use: float, budget: float) -> float:
            return max(0.0, price + self.price_step * (min(use / budget, 2.0) - 1))

        return Prices(
            step(prices.delay, used.delay, budgets.delay),
            step(prices.bytes, used.bytes, budgets.bytes),
            step(prices.memory, used.memory, budgets.memory),
        )


def _used(answers: Iterable[Answer], terms: Terms) -> Prices:
    """Seconds, bytes and share of the memory budget, of a round's answers."""
    answers = tuple(answers)
    done = [answer for answer in answers if answer.outcome is Outcome.DONE]
    seconds = [lasted_s(answer) for answer in done] + [known_or(terms.deadline_s)] * (len(answers) > len(done))
    shares = [known_or(answer.bytes / answer.budget_bytes) for answer in done if answer.budget_bytes > 0]
    sent = [known_or(answer.wire_bytes) for answer in done]
    return Prices(max(seconds, default=0.0), sum(sent) / max(len(sent), 1), max(shares, default=0.0))


def _scores(costs: Costs, prices: Prices, budgets: Prices) -> Floats:
    """(N, L, C); minus infinity for what a device may not get."""
    needs = np.array([level.needs_bytes for level in costs.levels], float)
    has = np.array([max(known_or(device.budget_bytes), 1.0) for device in costs.devices])
    scores = (
        costs.worth[None, :, :]
        - prices.delay * costs.task_s(1 / max(len(costs.devices), 1)) / budgets.delay
        - prices.bytes * costs.wire_bytes / budgets.bytes
        - (prices.memory * needs[None, :] / has[:, None] / budgets.memory)[:, :, None]
    )
    return np.where(costs.allowed[:, :, None], scores, -np.inf)


def _cheapest(costs: Costs, scores: Floats) -> dict[str, Choice]:
    """The best of each device that is worth something, or that is the best of all."""
    flat = scores.reshape(len(costs.devices), len(costs.levels) * len(costs.codecs))
    if not np.isfinite(flat).any():
        return {}
    best, worth = flat.argmax(axis=1), flat.max(axis=1)
    takes_part = np.flatnonzero(worth > 0) if (worth > 0).any() else [worth.argmax()]
    choices = {}
    for row in takes_part:
        level, codec = divmod(int(best[row]), len(costs.codecs))
        choices[costs.devices[row].name] = Choice(costs.levels[level].name, costs.codecs[codec])
    return choices
