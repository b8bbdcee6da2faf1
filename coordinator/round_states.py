"""The states of a run, and every way from one to another. docs/protocol.md draws its diagram from `TRANSITIONS`."""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """Where the run is."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSING = "closing"
    SECURING = "securing"
    AGGREGATING = "aggregating"
    DONE = "done"
    GAVE_UP = "gave-up"
    STOPPED = "stopped"


class Trigger(enum.Enum):
    """Why the state changes."""

    ENOUGH_DEVICES = "enough devices are there"
    NOBODY_FITS = "no device can take part"
    ALL_ANSWERED = "every device has answered"
    ENOUGH_RESULTS = "as many results are here as are wanted"
    DEADLINE = "the deadline passed"
    TRAINED = "enough devices have trained for a secure sum"
    QUORUM = "enough results"
    NO_QUORUM = "too few results"
    ATTEMPTS_SPENT = "too few results, for the last time"
    ADAPTER_READY = "the next adapter is there"
    NO_ADAPTER = "the results have no such middle as was asked for"
    LAST_ADAPTER_READY = "the last adapter is there"
    ALL_HALTED = "every level is halted"
    STOP = "somebody asked to stop"


TRANSITIONS: Final[dict[State, dict[Trigger, State]]] = {
    State.WAITING: {
        Trigger.ENOUGH_DEVICES: State.OPEN,
        Trigger.NOBODY_FITS: State.WAITING,
        Trigger.ATTEMPTS_SPENT: State.GAVE_UP,
        Trigger.ALL_HALTED: State.GAVE_UP,
        Trigger.STOP: State.STOPPED,
    },
    State.OPEN: {
        Trigger.ALL_ANSWERED: State.CLOSING,
        Trigger.ENOUGH_RESULTS: State.CLOSING,
        Trigger.DEADLINE: State.CLOSING,
        Trigger.ALL_HALTED: State.GAVE_UP,
        Trigger.STOP: State.STOPPED,
    },
    State.CLOSING: {
        Trigger.TRAINED: State.SECURING,
        Trigger.QUORUM: State.AGGREGATING,
        Trigger.NO_QUORUM: State.WAITING,
        Trigger.ATTEMPTS_SPENT: State.GAVE_UP,
        Trigger.STOP: State.STOPPED,
    },
    State.SECURING: {
        Trigger.QUORUM: State.AGGREGATING,
        Trigger.NO_QUORUM: State.WAITING,
        Trigger.ATTEMPTS_SPENT: State.GAVE_UP,
        Trigger.ALL_HALTED: State.GAVE_UP,
        Trigger.STOP: State.STOPPED,
    },
    State.AGGREGATING: {
        Trigger.ADAPTER_READY: State.WAITING,
        Trigger.NO_ADAPTER: State.WAITING,
        Trigger.ATTEMPTS_SPENT: State.GAVE_UP,
        Trigger.LAST_ADAPTER_READY: State.DONE,
        Trigger.STOP: State.STOPPED,
    },
    State.DONE: {},
    State.GAVE_UP: {},
    State.STOPPED: {},
}
