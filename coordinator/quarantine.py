"""Who sits out because of refused deltas. Pure: a function of the rounds in which a device's deltas were refused.

The ledger has every refusal, so nothing else needs to be remembered: a restarted coordinator finds the same devices in
quarantine, and so does the report. A device has no refused delta while it sits out, for it gets no task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from coordinator.guards import ChecksConfig


@dataclass(frozen=True, slots=True)
class Spell:
    """The device gets no task from the refusal in round `first` until round `last` is over."""

    device: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The rounds of each device's refused deltas, oldest first; a change gives a new one."""

    checks: ChecksConfig
    refused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, checks: ChecksConfig, refused: Iterable[tuple[str, int]]) -> Quarantine:
        """After these refusals, each a device and a round, oldest first."""
        found = cls(checks)
        for device, round_ in refused:
            found = found.with_refusal(device, round_)
        return found

    def with_refusal(self, device: str, round_: int) -> Quarantine:
        """After one more."""
        return Quarantine(self.checks, {**self.refused, device: (*self.refused.get(device, ()), round_)})

    def spells(self) -> tuple[Spell, ...]:
        """All there ever were, in the order of the devices' names."""
        return tuple(spell for device in sorted(self.refused) for spell in self._spells(device))

    def spell(self, device: str, round_: int) -> Spell | None:
        """The one in which the device is in this round, or None."""
        return next((s for s in self._spells(device) if s.first <= round_ <= s.last), None)

    def _spells(self, device: str) -> Iterator[Spell]:
        if strikes := self.checks.strikes:
            for first in self.refused.get(device, ())[strikes - 1 :: strikes]:
                yield Spell(device, first, first + self.checks.quarantine_rounds)
