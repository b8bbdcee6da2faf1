"""What a run is to be, and what it was so far: all that `rounds` is told when it begins, and what follows from it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.config import TransferConfig
from coordinator.course import RoundsConfig
from coordinator.fleet import Fleet
from coordinator.guards import ChecksConfig
from coordinator.policy.types import Answer, Choice, Level, Terms
from coordinator.rollout import RolloutConfig, Trial, Verdict
from coordinator.secure.steps import Fact
from coordinator.task_book import Entry, TaskMaker
from edge_sdk.wire.blobs import Blob


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change in a run: `artifacts` are the manifests of the `levels`, which are best first.

    No round opens without all of the `needed` devices. `lots` are drawn with that; else with the training's seed.
    `transfer` is what there is to share out, `rollout` how new levels are tried.
    """

    rounds: RoundsConfig
    tasks: TaskMaker
    levels: tuple[Level, ...]
    artifacts: dict[str, Blob]
    needed: frozenset[str] = frozenset()
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    lots: str = ""
    transfer: TransferConfig = field(default_factory=TransferConfig)
    rollout: RolloutConfig | None = None

    def terms(self, round_: int, adapter: Blob, losses: Mapping[int, float]) -> Terms:
        """What holds for the tasks of a round that starts from `adapter`, when these held-out losses are known."""
        return Terms(
            round=round_,
            rounds=self.rounds.count,
            steps=self.tasks.training.steps,
            deadline_s=self.rounds.deadline_s,
            bandwidth_bytes_s=self.transfer.megabytes_s * 1e6,
            adapter_bytes=adapter.size_bytes,
            codecs=self.tasks.codecs,
            loss=losses[max(losses)] if losses else 0.0,
            first_loss=losses.get(0, 0.0),
        )

    def drawn(self, round_: int, attempt: int, chosen: Mapping[str, Choice]) -> Mapping[str, Choice]:
        """Those of `chosen` that take part: whoever is needed, and the same others, whenever this attempt of a run with
        this seed is drawn.
        """
        seats, seed = self.rounds.seats, self.lots or self.tasks.training.seed
        if not 0 < seats < len(chosen):
            return chosen
        lots = random.Random(f"{seed}.{round_}.{attempt}")  # noqa: S311 - a fair draw, not a secret
        needed = self.needed & chosen.keys()
        drawn = needed | set(lots.sample(sorted(chosen.keys() - needed), max(seats - len(needed), 0)))
        return {device: choice for device, choice in chosen.items() if device in drawn}


@dataclass(frozen=True, slots=True)
class Past:
    """What the ledger remembers: `version` rounds are done and gave `adapter`; the next `attempt` may be `open`.

    `narrowed` is what levels of a lower rank get in the adapter's place, `losses` are held-out ones by version;
    `trials` and `verdicts` are of levels, `masking` is what became of the open attempt's secure sum.
    """

    version: int
    adapter: Blob
    attempt: int = 1
    open: bool = False
    entries: tuple[Entry, ...] = ()
    answers: tuple[Answer, ...] = ()
    fleet: Fleet = field(default_factory=Fleet)
    narrowed: Mapping[str, Blob] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    masking: tuple[Fact, ...] = ()
