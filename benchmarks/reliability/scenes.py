"""By which way a run comes past a crash point: most lie on every run's way, some need something to go wrong first."""

from __future__ import annotations

import enum
from typing import Any, Final

from edge_sdk.wire.crash_points import AGENT, COORDINATOR, WORKER, labels

# Deltas that come in two chunks, residuals and moments: all that can be kept is kept.
CHANGES: Final[dict[str, Any]] = {
    "adapter": {
        "rank": 64,
        "alpha": 64,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    },
    "aggregation": {"rule": "freeze-a", "optimizer": "fedadam", "learning_rate": 0.01},
}


class Scene(enum.Enum):
    """What goes on around the kill."""

    PLAIN = "two devices, two rounds"
    SLOW = "the armed side's line is slow, so that transfers outlast a journal's interval"
    DECLINES = "a third device is too small for every level"
    FAILS = "the other device's worker is killed, too"
    REPEATS = "the same, and the quorum needs both devices"
    REFUSED = "a third device sends what is no delta"
    STOPPED = "somebody asks the coordinator to stop while tasks are open"
    TRIES = "a level is tried by one device first"
    EVALUATES = "the adapter is measured after each round"
    FINISHES = "until checkpoint and report are there"
    SECURE = "four devices, whose deltas go into secure sums"


_OF_STEP: Final = {
    "journal": Scene.SLOW,
    "ledger.decline": Scene.DECLINES,
    "ledger.failure": Scene.FAILS,
    "ledger.repeat-round": Scene.REPEATS,
    "ledger.refuse-result": Scene.REFUSED,
    "ledger.cancel-task": Scene.STOPPED,
    "ledger.verdict": Scene.TRIES,
    "ledger.evaluation": Scene.EVALUATES,
    "report": Scene.FINISHES,
    "sum-numbers": Scene.SECURE,
    "sum-record": Scene.SECURE,
    "sum": Scene.SECURE,
    "ledger.masking": Scene.SECURE,
    "checkpoint": Scene.FINISHES,
}


def scene_of(label: str) -> Scene:
    """The scene that comes past `label`."""
    return _OF_STEP.get(label.rpartition(".")[0], Scene.PLAIN)


def cases() -> list[tuple[str, str]]:
    """Every process and label that it passes, in the order of the registry."""
    return [(who, label) for who in (AGENT, WORKER, COORDINATOR) for label, whose in labels().items() if who in whose]
