"""How far a device's task is, and every way from one phase to another. docs/protocol.md draws its diagram from
`TRANSITIONS`.
"""

from __future__ import annotations

import enum
from typing import Final


class Phase(enum.Enum):
    """How far the current task is."""

    IDLE = "idle"
    MANIFEST = "manifest"
    FILES = "files"
    TRAINING = "training"
    STOPPING = "stopping"


class Trigger(enum.Enum):
    """Why the phase changes."""

    OFFERED = "a task was offered"
    PLANNED = "a plan fits the budget"
    COMPLETE = "every file is here"
    ANSWERED = "declined or failed"
    CANCELLED = "cancelled, or its deadline passed"
    ENDED = "the worker ended"


TRANSITIONS: Final[dict[Phase, dict[Trigger, Phase]]] = {
    Phase.IDLE: {Trigger.OFFERED: Phase.MANIFEST},
    Phase.MANIFEST: {
        Trigger.PLANNED: Phase.FILES,
        Trigger.ANSWERED: Phase.IDLE,
        Trigger.CANCELLED: Phase.IDLE,
    },
    Phase.FILES: {
        Trigger.COMPLETE: Phase.TRAINING,
        Trigger.ANSWERED: Phase.IDLE,
        Trigger.CANCELLED: Phase.IDLE,
    },
    Phase.TRAINING: {Trigger.ENDED: Phase.IDLE, Trigger.CANCELLED: Phase.STOPPING},
    Phase.STOPPING: {Trigger.ENDED: Phase.IDLE},
}
