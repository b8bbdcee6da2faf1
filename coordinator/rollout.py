"""A new emulator level is tried by a few devices before the others get it, and halted where it does harm. Pure.

- A level that is watched is given to `canary` devices at most, in an order of its own, until `tasks` of theirs have
  ended; then it is open to all, or halted. It is halted at once when too many have failed for what may come to help.
- A task has failed when it went over the budget, when its numbers were not finite, its artifact was bad, its worker
  died, its delta was refused, or when the device's own loss rose. A device that declined, or was lost, says nothing.
- A halted level is given to nobody any more: devices fall back to the next one that fits them.

Everything follows from what the ledger has: how tasks of a level have ended, and which verdicts were said. A restarted
coordinator knows them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edge_sdk.wire.messages import FailureReason, RefusalReason, Report
from edge_sdk.wire.settings import number

Ended: TypeAlias = Report | FailureReason | RefusalReason

LEVELS_FAULT = {
    FailureReason.OVER_BUDGET,
    FailureReason.NON_FINITE,
    FailureReason.WORKER_DIED,
    FailureReason.BAD_ARTIFACT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Which levels are tried first, all without `levels`; by how many devices: `canary` of them, or a share below 1.

    Of `tasks` that have ended a share of `max_failures` may have failed; a device's loss may rise by a share of
    `max_loss_rise` in a task.
    """

    canary: float = number(1e-6, 10_000)
    tasks: int = number(1, 100_000, 4)
    max_failures: float = number(0, 1, 0.25)
    max_loss_rise: float = number(0, 1e6, 0.1)
    levels: tuple[str, ...] = ()

    def complaints(self, names: Collection[str], quorum: int) -> dict[str, bool]:
        """What no single value shows, and whether it applies, beside levels of these names."""
        unknown = [name for name in self.levels if name not in names]
        whole, watched = self.canary >= 1, set(self.levels or names)
        return {
            f"rollout.levels has {', '.join(unknown)}; there is no such level": bool(unknown),
            f"rollout.canary is {self.canary:g}; give a whole number of devices, or a share below 1": (
                whole and not self.canary.is_integer()
            ),
            f"rollout.canary is {self.canary:g}, fewer than rounds.quorum, {quorum}, and every level begins with them: "
            "name the new ones in rollout.levels": whole and watched == set(names) and self.canary < quorum,
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """How one task of a level has ended."""

    task_id: str
    device: str
    level: str
    ended: Ended


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level is open to all, or halted, and why."""

    level: str
    halted: bool
    why: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """Of levels, with what each needs in bytes: how their tasks ended, and what was said of them."""

    config: RolloutConfig | None
    levels: Mapping[str, int]
    trials: Mapping[str, Trial] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: RolloutConfig | None,
        levels: Mapping[str, int],
        trials: Iterable[Trial],
        verdicts: Iterable[Verdict],
    ) -> Rollout:
        """After these."""
        return cls(config, levels, {one.task_id: one for one in trials}, {one.level: one for one in verdicts})

    def with_trial(self, trial: Trial) -> Rollout:
        """After one more; the same one again changes nothing."""
        return dataclasses.replace(self, trials={**self.trials, trial.task_id: trial})

    def with_verdict(self, verdict: Verdict) -> Rollout:
        """After it was said."""
        return dataclasses.replace(self, verdicts={**self.verdicts, verdict.level: verdict})

    def due(self) -> tuple[Verdict, ...]:
        """What has to be said of levels that are watched."""
        found = (self._verdict(level, self.config) for level in self.levels if self.config and self._watches(level))
        return tuple(verdict for verdict in found if verdict is not None)

    def end(self) -> str | None:
        """Why nothing can go on: every level is halted. Else None."""
        halted = [one for one in self.verdicts.values() if one.halted]
        if not self.levels or len(halted) < len(self.levels):
            return None
        return "every level is halted; " + "; ".join(f"{one.level}: {one.why}" for one in halted)

    def barred(
        self, asked: Mapping[str, int], online: Collection[str], at_work: Iterable[tuple[str, str]]
    ) -> dict[str, frozenset[str]]:
        """The levels that each of the devices may not get that are `asked`, with their budgets in bytes.

        `at_work` has devices and the levels of their unfinished tasks.
        """
        found: dict[str, set[str]] = {device: set() for device in asked}
        working = tuple(at_work)
        for level in self.levels:
            allowed = set(asked)
            if level in self.verdicts and self.verdicts[level].halted:
                allowed = set()
            elif self.config is not None and self._watches(level):
                canaries = {device for device, its in working if its == level} | self._tried(level)
                allowed = self._canaries(level, asked, canaries & set(online), len(online), self.config)
            for device in asked.keys() - allowed:
                found[device].add(level)
        return {device: frozenset(levels) for device, levels in found.items()}

    def _watches(self, level: str) -> bool:
        config = self.config
        return config is not None and level not in self.verdicts and (not config.levels or level in config.levels)

    def _tried(self, level: str) -> set[str]:
        return {one.device for one in self.trials.values() if one.level == level}

    def _canaries(
        self, level: str, asked: Mapping[str, int], known: set[str], online: int, config: RolloutConfig
    ) -> set[str]:
        """Those who are at it, and as many of the others as there is room for, whom it fits."""
        wanted = int(config.canary) if config.canary >= 1 else max(1, math.ceil(config.canary * online))
        others = [device for device in asked if device not in known and asked[device] >= self.levels[level]]
        others.sort(key=lambda device: hashlib.sha256(f"{level}.{device}".encode()).digest())
        return known | set(others[: max(0, wanted - len(known))])

    def _verdict(self, level: str, config: RolloutConfig) -> Verdict | None:
        ended = [one for one in self.trials.values() if one.level == level]
        failed = [f"{one.device}: {why}" for one in ended if (why := wrong(one.ended, config.max_loss_rise))]
        allowed = config.max_failures * max(len(ended), config.tasks)
        if len(failed) > allowed:
            why = f"{len(failed)} of {len(ended)} canary tasks failed ({', '.join(failed)})"
            return Verdict(level, halted=True, why=why)
        if len(ended) < config.tasks:
            return None
        return Verdict(level, halted=False, why=f"{len(failed)} of {len(ended)} canary tasks failed")


def counts(reason: FailureReason) -> bool:
    """Whether a failure can be the level's fault, and not the device's data, disk or owner's."""
    return reason in LEVELS_FAULT


def wrong(ended: Ended, max_loss_rise: float) -> str:
    """What is wrong with how a task has ended; empty where nothing is."""
    if isinstance(ended, FailureReason):
        return ended.value
    if isinstance(ended, RefusalReason):
        return f"refused, {ended.value}"
    if ended.loss_after <= ended.loss_before * (1 + max_loss_rise):
        return ""
    return f"loss {ended.loss_before:.3f} -> {ended.loss_after:.3f}"
