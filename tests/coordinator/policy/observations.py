"""Observations of all kinds, also such as nothing real makes: strategies for whatever decides about a fleet."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar, cast

from hypothesis import strategies as st

from coordinator.policy.fitting import Known, fitting, last_resort
from coordinator.policy.types import (
    NEVER,
    Answer,
    Choice,
    Decision,
    DeviceView,
    Level,
    Observation,
    Outcome,
    Terms,
)
from edge_sdk.wire.messages import DeltaCodec

MB: Final = 10**6
NAMES: Final = tuple("abcdefgh")
LEVELS: Final = ("fp32", "int8", "int4", "half", "tiny")
T = TypeVar("T")

FILES: Final = tuple(f"sha-{k}" for k in range(4))

# What is not known, and what nobody can have: a decision must not depend on numbers being sensible.
ODD: Final = (0.0, -1.0, math.nan, math.inf, 1e-300, 1e300)


class Chance:
    """Draws from a seed: an observation has a thousand numbers, too many for Hypothesis to draw one by one."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def number(self, low: float, high: float) -> float:
        """Of any size between, or odd."""
        if self._random.random() < 0.2:
            return self._random.choice(ODD)
        return math.exp(self._random.uniform(math.log(low), math.log(high)))

    def whole(self, low: int, high: int) -> int:
        """Either end as well."""
        return self._random.choice((low, high, self._random.randint(low, high), self._random.randint(low, high)))

    def some(self, of: Sequence[T]) -> tuple[T, ...]:
        """None, all, or some, in any order."""
        return tuple(self._random.sample(of, self._random.randint(0, len(of))))

    def one(self, of: Sequence[T]) -> T:
        """Any of them."""
        return self._random.choice(of)

    def level(self, name: str) -> Level:
        """Any level of this name."""
        return Level(
            name,
            needs_bytes=self.whole(0, 1000 * MB),
            size_bytes=self.whole(0, 1000 * MB),
            model=self.one(("one", "other")),
            trained_layers=self.whole(0, 12),
            upload_bytes={codec: self.whole(0, 100 * MB) for codec in self.some(tuple(DeltaCodec))},
            files={name: self.whole(0, 500 * MB) for name in self.some(FILES)},
            step_s=self.one((0.0, 0.001, 0.1, 2.0)),
            quality=self.one((0.0, 0.3, 0.9, 1.0)),
        )

    def device(self, name: str) -> DeviceView:
        """Any device of this name; its budget may be no number, which no message can say."""
        return DeviceView(
            name,
            budget_bytes=cast("int", math.nan) if self.whole(0, 20) == 3 else self.whole(0, 2000 * MB),
            threads=self.whole(1, 16),
            battery=self.number(0.01, 1),
            examples=self.whole(0, 100_000),
            rate_bytes_s=self.number(1e3, 1e9),
            slowness=self.number(0.1, 100),
            loss=self.number(0.1, 10),
            holds=frozenset(self.some((*LEVELS, "of another run"))),
            asked=self.whole(0, 50),
            answered=self.whole(0, 50),
            last_round=self.whole(NEVER, 50),
            last_level=self.one(("", *LEVELS)),
        )

    def answer(self) -> Answer:
        """Any answer, of anybody."""
        return Answer(
            self.one((*NAMES, "stranger")),
            self.one((*LEVELS, "of another run")),
            self.one(tuple(Outcome)),
            budget_bytes=self.whole(0, 2000 * MB),
            bytes=self.whole(0, 3000 * MB),
            wall_s=self.number(1e-3, 1e4),
            round=self.whole(NEVER, 5),
            step_s=self.number(1e-3, 1e2),
            power=self.one((0.01, 0.5, 1.0)),
            loss=self.number(0.1, 10),
            examples=self.whole(0, 100_000),
            wire_bytes=self.whole(0, 500 * MB),
            wire_s=self.number(1e-3, 1e4),
            allowed_bytes_s=self.number(1e3, 1e9),
        )

    def terms(self) -> Terms:
        """Any terms."""
        return Terms(
            round=self.whole(1, 6),
            rounds=self.whole(1, 50),
            steps=self.whole(0, 1000),
            deadline_s=self.number(1e-3, 1e5),
            bandwidth_bytes_s=self.number(1e3, 1e9),
            adapter_bytes=self.whole(0, 50 * MB),
            codecs=self.some(tuple(DeltaCodec)),
            loss=self.number(0.1, 10),
            first_loss=self.number(0.1, 10),
        )

    def ladder(self) -> tuple[Level, ...]:
        """Levels of different names, maybe none."""
        return tuple(map(self.level, self.some(LEVELS)))

    def observation(self, ladder: tuple[Level, ...]) -> Observation:
        """Devices may be missing from the fleet, and the fleet may have others."""
        return Observation(
            tuple(map(self.device, self.some(NAMES))),
            ladder,
            tuple(self.answer() for _ in range(self.whole(0, 8))),
            tuple(map(self.device, self.some(NAMES))),
            self.terms(),
        )


def _observation(seed: int) -> Observation:
    chance = Chance(seed)
    return chance.observation(chance.ladder())


def _sequence(seed: int) -> list[Observation]:
    chance = Chance(seed)
    ladder = chance.ladder()
    return [chance.observation(ladder) for _ in range(4)]


def observations() -> st.SearchStrategy[Observation]:
    """Any observation."""
    return st.integers(0, 1 << 40).map(_observation)


def sequences() -> st.SearchStrategy[list[Observation]]:
    """Observations one after the other, of one ladder, as a policy sees them."""
    return st.integers(0, 1 << 40).map(_sequence)


def objection(decision: Decision, observation: Observation, known: Known) -> str | None:
    """What is wrong with a decision, or None: what every policy must keep, whatever it was shown.

    `known` is from all answers so far, also this observation's. A level that does not fit is wrong but for the last
    resort, of all levels or of those of one model.
    """
    here = {device.name: device for device in observation.devices}
    ladder = {level.name: level for level in observation.levels}
    for name, choice in decision.choices.items():
        if name not in here:
            return f"{name} is not observed"
        if choice.level not in ladder:
            return f"{choice.level} is no level"
        level, model = ladder[choice.level], ladder[choice.level].model
        alike = tuple(other for other in observation.levels if other.model == model)
        if level not in (
            *fitting(here[name], observation.levels, known),
            *fitting(here[name], alike, known),
            last_resort(here[name], observation.levels, known),
            last_resort(here[name], alike, known),
        ):
            return f"{choice.level} does not fit {name}"
        why = _odd(choice, observation.terms)
        if why:
            return f"{name}: {why}"
    return None


def _odd(choice: Choice, terms: Terms) -> str | None:
    checks: Mapping[str, bool] = {
        f"codec {choice.codec} is not allowed": choice.codec in {None, *terms.codecs} or not terms.codecs,
        f"share {choice.share}": 0 < choice.share < math.inf,
        f"power {choice.power}": 0 < choice.power <= 1,
    }
    return next((why for why, right in checks.items() if not right), None)
