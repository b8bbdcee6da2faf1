"""The table `[policy]` of a configuration: which policy, and its settings."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.settings import number

WEEK_S: Final = 7 * 24 * 3600.0
MAX_PARTICIPANTS: Final = 10_000


class PolicyName(enum.Enum):
    """Who gets which level; see `coordinator.policy`."""

    LARGEST_THAT_FITS = "largest-that-fits"
    FASTEST_THAT_FITS = "fastest-that-fits"
    FIXED = "fixed"
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    CAFF = "caff"
    UCB = "ucb"
    LAGRANGIAN = "lagrangian"
    KKT = "kkt"
    PPO = "ppo"


# Which of the fields of `PolicyConfig` are whose; what is not here has none.
SETTINGS: Final[Mapping[PolicyName, tuple[str, ...]]] = {
    PolicyName.FIXED: ("level",),
    PolicyName.RANDOM: ("seed",),
    PolicyName.ROUND_ROBIN: ("participants",),
    PolicyName.CAFF: ("max_upload_bytes", "max_task_s"),
    PolicyName.UCB: ("delay_weight",),
    PolicyName.LAGRANGIAN: ("budget_s", "budget_bytes", "budget_memory", "price_step"),
    PolicyName.KKT: ("people_power", "between_s"),
    PolicyName.PPO: ("file",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """Tuning `ppo` while it is in use, see `coordinator.tuner`: `every` so many rounds, by `steps` simulated ones.

    20,000 of them take about a minute of a core, beside whatever else the coordinator's machine does.
    """

    every: int = number(2, 100_000, 8)
    steps: int = number(1, 100_000_000, 20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Who decides, and the settings that it has: which are whose is in `SETTINGS`, what they mean in the policy.

    `fixed` needs a level; all others may be left out. Without a `file`, `ppo` decides by the one in the package; with
    `tune` it goes on learning.
    """

    name: PolicyName = PolicyName.LARGEST_THAT_FITS
    level: str = ""
    seed: int = number(0, 1 << 31, 0)
    participants: int = number(0, MAX_PARTICIPANTS, 0)
    max_upload_bytes: int = number(0, 1 << 50, 0)
    max_task_s: float = number(0, WEEK_S, 0)
    delay_weight: float = number(0, 1000, 0.5)
    budget_s: float = number(0, WEEK_S, 0)
    budget_bytes: int = number(0, 1 << 50, 0)
    budget_memory: float = number(0.01, 1, 1.0)
    price_step: float = number(0.001, 1000, 0.5)
    people_power: float = number(0, 1, 0.5)
    between_s: float = number(0, WEEK_S, 60.0)
    file: pathlib.Path | None = None
    tune: TuneConfig | None = None


def policy_complaints(policy: PolicyConfig, levels: list[str]) -> dict[str, bool]:
    """What no single value of the table shows, and whether it applies; `levels` are the run's."""
    name, default = policy.name, PolicyConfig()
    fixed, has = name is PolicyName.FIXED, ", ".join(levels)
    complaints = {
        f"policy.level is missing; fixed needs one of: {has}": fixed and not policy.level,
        f"policy.level is {policy.level!r}; the levels are: {has}": fixed and policy.level not in levels,
        f"policy.tune is for the policy ppo, this one is {name.value}": (
            policy.tune is not None and name is not PolicyName.PPO
        ),
    }
    for owner, settings in SETTINGS.items():
        for setting in settings:
            complaints[f"policy.{setting} is for the policy {owner.value}, this one is {name.value}"] = (
                owner is not name and getattr(policy, setting) != getattr(default, setting)
            )
    return complaints
