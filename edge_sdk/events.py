"""What `session` is told (events) and what it asks for (instructions). Data alone.

The agent turns messages, finished work and time into events, and executes instructions in the order in which they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sdk.supervisor import WorkerFailed, WorkerFinished, WorkerProgress
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import (
    DeclineReason,
    Message,
    NotWelcome,
    Receipt,
    Report,
    ResultOffer,
    Task,
    TaskCancel,
    TaskOffer,
    Welcome,
)
from edge_sdk.wire.secure.said import MaskKeys

# ---- events, beside the coordinator's messages and the worker's events


@dataclass(frozen=True, slots=True)
class ManifestHere:
    """The manifest of the task was fetched and read."""

    task_id: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class FilesHere:
    """Everything that the task needs is in the store; `down_bytes` came over the wire for it."""

    task_id: str
    down_bytes: int


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """What the task needs cannot be had or kept; for `no-space`, `needed_bytes` more were to be kept."""

    task_id: str
    reason: DeclineReason
    detail: str
    needed_bytes: int = 0
    available_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ResultKept:
    """The result is on disk, and can be offered."""

    offer: ResultOffer


@dataclass(frozen=True, slots=True)
class SumJoined:
    """The task is done, and its delta waits for its secure sum; `keys` are this device's in it."""

    keys: MaskKeys


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = (
    Welcome
    | NotWelcome
    | TaskOffer
    | TaskCancel
    | Receipt
    | ManifestHere
    | FilesHere
    | FetchFailed
    | WorkerProgress
    | WorkerFinished
    | WorkerFailed
    | ResultKept
    | SumJoined
    | Tick
)

# ---- instructions


@dataclass(frozen=True, slots=True)
class Send:
    """Tell the coordinator."""

    message: Message


@dataclass(frozen=True, slots=True)
class Greet:
    """Begin a new conversation: in this one messages are held back, or the other end's clock stood still."""


@dataclass(frozen=True, slots=True)
class KeepVersion:
    """Write that no offer of a lower version is taken any more."""

    version: int


@dataclass(frozen=True, slots=True)
class FetchManifest:
    """Have the task's manifest; then say ManifestHere or FetchFailed."""

    task: Task


@dataclass(frozen=True, slots=True)
class FetchFiles:
    """Have every file that the task needs; then say FilesHere or FetchFailed."""

    task: Task
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class StopFetching:
    """Nothing of what is on its way in is needed any more; what came stays."""


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Prepare and train; `correction` is how much larger peaks were here than predicted, from 1.

    With `feedback` the delta makes up for what earlier ones left out.
    """

    task: Task
    manifest: Manifest
    correction: float
    feedback: bool


@dataclass(frozen=True, slots=True)
class CancelWorker:
    """End the worker; its WorkerFailed, or its last word before that, follows."""


@dataclass(frozen=True, slots=True)
class KeepResult:
    """Put the delta and its report into the outbox; then say ResultKept, or WorkerFailed if the disk is full.

    `residual_path` is as in WorkerFinished.
    """

    task_id: str
    delta_path: Path
    report: Report
    residual_path: Path | None


@dataclass(frozen=True, slots=True)
class JoinSum:
    """Keep the delta's numbers for its secure sum; then say SumJoined, or WorkerFailed if the disk is full."""

    task: Task
    numbers_path: Path
    report: Report


@dataclass(frozen=True, slots=True)
class LeaveSum:
    """Forget the part that this device has in the secure sum of that task, if it has one."""

    task_id: str


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """The coordinator has had its last word on it; where it was `accepted`, its residual is the one from now on."""

    offer: ResultOffer
    accepted: bool


@dataclass(frozen=True, slots=True)
class CheckFiles:
    """The worker found a file damaged: remove what is not what it promises, so that it is fetched again."""

    task: Task
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the person who watches the device."""

    line: str


Instruction = (
    Send
    | Greet
    | KeepVersion
    | FetchManifest
    | FetchFiles
    | StopFetching
    | StartWorker
    | CancelWorker
    | KeepResult
    | JoinSum
    | LeaveSum
    | ForgetResult
    | CheckFiles
    | Say
)
