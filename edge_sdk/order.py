"""What an agent asks of its worker: the file that the worker process reads."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.messages import Task

MAX_ORDER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """One task with everything it needs on this device.

    `prepare` is the command that makes the token folder `data` first, empty where it is there already. At most
    `held_aside_rows` of its rows are kept from training, to measure the loss on. `correction` is
    how much larger peaks were on this device than predicted, as a ratio from 1.
    """

    device: str
    task: Task
    store: str
    data: str
    delta: str
    prepare: tuple[str, ...]
    budget_bytes: int
    correction: float
    threads: int
    held_aside_rows: int
