"""Whether a policy that was tuned in the midst of a run is better than the one before it: a trial in turns. Pure.

The two decide ROUNDS rounds in the order tuned, base, base, tuned: what a round earns falls as a model learns, and in
that order a fall that is even favours neither. The tuned one stays where its rounds earned no less; a round of its own
that had to be repeated ends its trial at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.controller.earned import REPEATED

TURNS: Final = (True, False, False, True)  # whether the tuned one decides
ROUNDS: Final = len(TURNS)


@dataclass(frozen=True, slots=True)
class Duel:
    """Of the policies with these digests; rounds are measured by `gap`, in nats, and the largest level's `level_bytes`.

    `winner` is the digest of the one that stays, once that is known, and `why` says so in words.
    """

    first_round: int
    base: str
    tuned: str
    gap: float
    level_bytes: int
    winner: str = ""
    why: str = ""

    @property
    def rounds(self) -> range:
        """Those that it takes."""
        return range(self.first_round, self.first_round + ROUNDS)

    def decides(self, round_: int) -> str:
        """Who decides a round: after the turns, and until it is known who stays, the base."""
        if self.winner:
            return self.winner
        return self.tuned if round_ in self.rounds and TURNS[round_ - self.first_round] else self.base


def verdict(duel: Duel, earned: Mapping[int, float | None]) -> tuple[str, str] | None:
    """Who stays, and why; None as long as rounds are missing. `earned` are the trial's rounds, as far as there are."""
    turns = dict(zip(duel.rounds, TURNS, strict=True))
    for round_, is_tuned in turns.items():
        if is_tuned and earned.get(round_) == REPEATED:
            return duel.base, f"round {round_}, which the tuned policy decided, came to nothing"
    found = {True: list[float](), False: list[float]()}
    for round_, is_tuned in turns.items():
        value = earned.get(round_)
        if value is None:
            return None
        if value != REPEATED:
            found[is_tuned].append(value)
    if not found[False]:
        return duel.tuned, "all rounds of the policy before it came to nothing"
    tuned, base = (sum(found[who]) / len(found[who]) for who in (True, False))
    words = f"a round of the tuned policy earned {tuned:.4f}, one of the policy before it {base:.4f}"
    return (duel.tuned if tuned >= base else duel.base), words
