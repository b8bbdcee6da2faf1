"""What `rounds` is told (events) and what it asks for (instructions). Data alone.

The daemon turns messages, finished jobs and time into events, and executes instructions in the order in which they
come: whatever has to outlive a crash is written to the ledger before anything is sent.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.assignment import Decided
from coordinator.policy.types import Answer, Choice, Policy
from coordinator.quarantine import Spell
from coordinator.rollout import Verdict
from coordinator.secure.steps import Fact
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.messages import (
    Hello,
    Presence,
    Receipt,
    RefusalReason,
    Report,
    ResultOffer,
    Task,
    TaskDeclined,
    TaskFailed,
    TaskProgress,
)
from edge_sdk.wire.secure.said import MaskInbox, MaskKeys, MaskPeers, MaskShares, UnmaskCall, UnmaskShares


class TaskState(enum.Enum):
    """How far a task is. All but the first three are final; `lost` is one that its round was closed without.

    A device that has `trained` waits for the others of its secure sum.
    """

    OFFERED = "offered"
    TRAINED = "trained"
    FETCHING = "fetching"
    COMMITTED = "committed"
    REFUSED = "refused"
    DECLINED = "declined"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether nothing more can come of it."""
        return self not in _UNFINISHED

    @property
    def answered(self) -> bool:
        """Whether an open round need not wait for it."""
        return self.final or self is TaskState.TRAINED


# No set: that would hash, which enums do slowly, and this is asked of every task at every message.
_UNFINISHED: Final = (TaskState.OFFERED, TaskState.TRAINED, TaskState.FETCHING)


# ---- events


@dataclass(frozen=True, slots=True)
class HelloHeard:
    """A device introduced itself, perhaps again."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class PresenceHeard:
    """A device came or went."""

    presence: Presence


@dataclass(frozen=True, slots=True)
class UsePolicy:
    """From the next decision on, `policy` decides."""

    policy: Policy[Any]


@dataclass(frozen=True, slots=True)
class DeviceRevoked:
    """`device` takes part in nothing any more."""

    device: str


@dataclass(frozen=True, slots=True)
class DeclineHeard:
    """`device` will not do a task."""

    device: str
    message: TaskDeclined


@dataclass(frozen=True, slots=True)
class FailureHeard:
    """`device` has no result."""

    device: str
    message: TaskFailed


@dataclass(frozen=True, slots=True)
class ProgressHeard:
    """`device` is at work."""

    device: str
    message: TaskProgress


@dataclass(frozen=True, slots=True)
class MaskingHeard:
    """`device` says something of a secure sum; `identity` is the key that it is enrolled with."""

    device: str
    identity: bytes
    message: MaskKeys | MaskShares | UnmaskShares


@dataclass(frozen=True, slots=True)
class ResultHeard:
    """`device` has a delta to be fetched."""

    device: str
    message: ResultOffer


@dataclass(frozen=True, slots=True)
class ResultCommitted:
    """A delta was fetched, found good, and is in the ledger, with what it is to a policy."""

    task_id: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class ResultRefused:
    """A delta was fetched and found bad, or could not be fetched; the ledger says so."""

    task_id: str
    reason: RefusalReason
    detail: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """We are connected to the broker again; it may have forgotten everything."""


@dataclass(frozen=True, slots=True)
class AdapterReady:
    """The deltas of `round` have become the adapter `blob`, and the ledger says so.

    `narrowed` is what levels of a lower rank get in its place.
    """

    round: int
    blob: Blob
    narrowed: Mapping[str, Blob] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoAdapter:
    """The deltas of `round` do not have what the configuration's estimator needs; they are not used."""

    round: int
    why: str


@dataclass(frozen=True, slots=True)
class LossMeasured:
    """The full model's held-out loss with this version of the adapter, in nats; the ledger has it."""

    version: int
    loss: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The person at the coordinator pressed Ctrl-C."""


Event = (
    HelloHeard
    | PresenceHeard
    | DeviceRevoked
    | DeclineHeard
    | FailureHeard
    | ProgressHeard
    | MaskingHeard
    | ResultHeard
    | ResultCommitted
    | ResultRefused
    | Reconnected
    | AdapterReady
    | NoAdapter
    | LossMeasured
    | UsePolicy
    | Tick
    | StopAsked
)

# ---- instructions


@dataclass(frozen=True, slots=True)
class RecordDecision:
    """Write what was decided, and from what; what follows from it comes after."""

    round: int
    attempt: int
    decided: Decided


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Write that the round is open, and announce it: `drawn` of the `present` devices that could take part do."""

    round: int
    attempt: int
    present: int
    drawn: int


@dataclass(frozen=True, slots=True)
class GiveTask:
    """Write the task, then offer it; `words` say for people what was chosen."""

    device: str
    choice: Choice
    attempt: int
    task: Task
    words: str


@dataclass(frozen=True, slots=True)
class OfferAgain:
    """Offer a task that is in the ledger already."""

    device: str
    task: Task


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Write that the task is cancelled where it is ours, and tell the device; with an `answer` it is lost."""

    device: str
    task_id: str
    reason: str
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class RecordDecline:
    """Write what the device answered, and what that is to a policy."""

    device: str
    level: str
    message: TaskDeclined
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class RecordFailure:
    """Write what the device answered, and what that is to a policy."""

    device: str
    level: str
    budget_bytes: int
    message: TaskFailed
    answer: Answer


@dataclass(frozen=True, slots=True)
class FetchDelta:
    """Pull the delta, check it, write it to the ledger; then say ResultCommitted or ResultRefused.

    `answer` is what it will be to a policy, less what is not known yet: see `answers.finished`. `offered_s` is when the
    task was offered, on the clock of `rounds`; None where a former process did it.
    """

    device: str
    level: str
    task: Task
    delta: Blob
    report: Report
    answer: Answer
    offered_s: float | None


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """Tell the device; what it says is in the ledger already."""

    device: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class SetRates:
    """From now on blobs of these devices go at most so many bytes a second, those of all others as configured."""

    bytes_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SitOut:
    """Say that a device had too many deltas refused; that it sits out follows from the refusals in the ledger."""

    spell: Spell


@dataclass(frozen=True, slots=True)
class RecordVerdict:
    """Write what is said of a level, and say it."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RepeatRound:
    """Write that this attempt came to nothing, and say why."""

    round: int
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class RecordMasking:
    """Write what became of the secure sum of an attempt."""

    round: int
    attempt: int
    fact: Fact


@dataclass(frozen=True, slots=True)
class TellMasking:
    """Say this to a device of a secure sum."""

    device: str
    message: MaskPeers | MaskInbox | UnmaskCall


@dataclass(frozen=True, slots=True)
class SayLiar:
    """Say that what a device of a secure sum has sent counts for nothing."""

    device: str
    why: str


@dataclass(frozen=True, slots=True)
class AggregateRound:
    """Make the next adapter of these committed tasks' deltas; then say AdapterReady."""

    round: int
    attempt: int
    adapter: Blob
    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """All rounds are done."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run cannot go on without somebody doing something about `why`."""

    why: str


Instruction = (
    RecordDecision
    | OpenRound
    | GiveTask
    | OfferAgain
    | CancelTask
    | RecordDecline
    | RecordFailure
    | FetchDelta
    | SendReceipt
    | SetRates
    | SitOut
    | RecordVerdict
    | RepeatRound
    | RecordMasking
    | TellMasking
    | SayLiar
    | AggregateRound
    | Finish
    | GiveUp
)
