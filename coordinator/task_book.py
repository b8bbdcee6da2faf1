"""Every task of the run, and what was said about it. State alone; `rounds` decides."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coordinator.config import Rule, TrainingConfig
from coordinator.events import TaskState
from coordinator.policy.types import Choice
from coordinator.secure.config import Terms
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.codecs import NEEDS_RESIDUAL
from edge_sdk.wire.messages import DeltaCodec, Receipt, RefusalReason, Report, Task, TaskProgress
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure.said import Masking

OFFERED = (DeltaCodec.FP32, DeltaCodec.FP16, DeltaCodec.INT8, DeltaCodec.INT4)  # to policies, beside the configured one
FROZEN = {Rule.LORA_SVD: (), Rule.FREEZE_A: ("lora_A",), Rule.MEAN: ()}


@dataclass(slots=True)
class Entry:
    """One task, and what was chosen for it. `offered_s` is when it was made, None where a former process did it;
    `heard_s` when the device last spoke of it, `progress` what it said while it trained; it is taken back at `due_s`.

    `refusal` and `detail` say why a delta was refused; `report` came with one that was offered. A committed one
    `counts_in` that version of the adapter.
    """

    device: str
    choice: Choice
    attempt: int
    task: Task
    state: TaskState
    refusal: RefusalReason | None = None
    detail: str = ""
    offered_s: float | None = None
    heard_s: float = 0.0
    due_s: float = math.inf
    counts_in: int = 0
    progress: TaskProgress | None = None
    report: Report | None = None

    def receipt(self) -> Receipt | None:
        """The final word on this task's result, or None while there is none."""
        task_id = self.task.task_id
        if self.state is TaskState.COMMITTED:
            return Receipt(task_id, accepted=True, reason=None, detail="")
        if self.state is TaskState.REFUSED:
            return Receipt(task_id, accepted=False, reason=self.refusal, detail=self.detail)
        if self.state.final:
            return Receipt(
                task_id, accepted=False, reason=RefusalReason.CLOSED, detail=f"the task was {self.state.value}"
            )
        return None


class TaskBook:
    """The tasks by id, those of each attempt, those that count in each version, and those without an end: looking at
    the current ones costs the same after years.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Begin with what the ledger holds."""
        self._entries: dict[str, Entry] = {}
        self._attempts: defaultdict[tuple[int, int], list[Entry]] = defaultdict(list)
        self._counting: defaultdict[int, list[Entry]] = defaultdict(list)
        self._unfinished: dict[str, Entry] = {}
        self._owing: set[str] = set()
        for entry in entries:
            self.add(entry)

    def get(self, task_id: str, device: str) -> Entry | None:
        """The device's task of that id; another device's is as unknown as none."""
        entry = self._entries.get(task_id)
        return entry if entry is not None and entry.device == device else None

    def __getitem__(self, task_id: str) -> Entry:
        """The task of that id. Raises KeyError."""
        return self._entries[task_id]

    def add(self, entry: Entry) -> None:
        """A new task."""
        self._entries[entry.task.task_id] = entry
        self._attempts[entry.task.round, entry.attempt].append(entry)
        if entry.state is TaskState.COMMITTED:
            self._counting[entry.counts_in].append(entry)
        elif not entry.state.final:
            self._unfinished[entry.task.task_id] = entry
        if entry.task.residual:
            self._owing.add(entry.device)

    def commit(self, entry: Entry, version: int) -> None:
        """Its result is here, and will be in that version of the adapter. Once more changes nothing."""
        if entry.state is not TaskState.COMMITTED:
            entry.state, entry.counts_in = TaskState.COMMITTED, version
            self._counting[version].append(entry)

    def counting_in(self, version: int) -> tuple[Entry, ...]:
        """Those with a result for this version, as they came."""
        return tuple(self._counting.get(version, ()))

    def unfinished(self) -> tuple[Entry, ...]:
        """Those of which something may still come, oldest first."""
        self._unfinished = {name: entry for name, entry in self._unfinished.items() if not entry.state.final}
        return tuple(self._unfinished.values())

    def may_owe(self, device: str) -> bool:
        """Whether the device may have a residual of this run: it was given a task that leaves one."""
        return device in self._owing

    def of(self, round_: int, attempt: int) -> Iterator[Entry]:
        """The tasks of one attempt at a round, in the order in which they were made."""
        return iter(self._attempts.get((round_, attempt), ()))


@dataclass(frozen=True, slots=True)
class Place:
    """Whose task it is, and which: the `number`-th of `device` in an attempt at a round. From the same adapter it has
    `given` so many deltas before.
    """

    device: str
    round: int
    attempt: int
    number: int = 0
    given: int = 0


@dataclass(frozen=True, slots=True)
class TaskMaker:
    """Makes tasks. Two coordinators with the same run, round and device make the same one."""

    run: str
    training: TrainingConfig
    rule: Rule
    secure: Terms | None = None
    example_noise: ExampleNoise | None = None
    sources: tuple[str, ...] = ()

    @property
    def codecs(self) -> tuple[DeltaCodec, ...]:
        """In which a delta may come, the configured one first; of others those that the rule has all for."""
        if self.secure is not None:
            return (DeltaCodec.FP32,)
        others = (codec for codec in OFFERED if codec not in NEEDS_RESIDUAL or self.rule.keeps_coordinates)
        return tuple(dict.fromkeys((self.training.delta_codec, *others)))

    def make(
        self, place: Place, choice: Choice, *, artifact: Blob, adapter: Blob, left_s: float, may_owe: bool = False
    ) -> Task:
        """The task of that place; the device `may_owe` what codecs have left out of its former deltas."""
        training, codec = self.training, choice.codec or self.training.delta_codec
        return Task(
            task_id=f"{self.run}.{place.round}.{place.attempt}.{place.number}.{place.device}",
            round=place.round,
            artifact=artifact,
            adapter=adapter,
            steps=training.steps,
            batch=training.batch,
            tokens=training.tokens,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            schedule=training.schedule,
            warmup_steps=training.warmup_steps,
            clip_norm=training.clip_norm,
            seed=_seed(training.seed, place),
            freeze=FROZEN[self.rule],
            deadline_s=left_s,
            integer_gradients=training.integer_gradients,
            delta_codec=codec,
            residual=self.run if self._keeps_residuals(codec, may_owe=may_owe) else "",
            power=choice.power,
            example_noise=self.example_noise,
            masking=None if self.secure is None else self._masking(self.secure, place),
            sources=self.sources,
        )

    def _masking(self, secure: Terms, place: Place) -> Masking:
        return secure.masking(f"{self.run}.{place.round}.{place.attempt}", self.training.steps * self.training.batch)

    def _keeps_residuals(self, codec: DeltaCodec, *, may_owe: bool) -> bool:
        """Where the next delta can make up for what this one loses. An exact one loses nothing, and pays."""
        return self.rule.keeps_coordinates and (codec is not DeltaCodec.FP32 or may_owe)


def with_time_left(task: Task, left_s: float) -> Task:
    """The task as it is offered again, later."""
    return dataclasses.replace(task, deadline_s=max(0.0, left_s))


def _seed(seed: int, place: Place) -> int:
    """A seed of its own for each device and round: devices that draw the same rows would add nothing to each other, nor
    would a device that draws its own once more.
    """
    again = f".{place.given}" * bool(place.given)
    name = f"{seed}.{place.round}.{place.device}{again}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
