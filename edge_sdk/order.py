"""What an agent asks of its worker: the file that the worker process reads."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.messages import Task

MAX_ORDER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """One task with everything it needs on this device.

    `prepare` is the command that makes the token folder `data` first, empty where it is there already. At most
    `held_aside_rows` of its rows are kept from training, to measure the loss on. `micro_batch` and `head_rows` are the
    plan's, `predicted_bytes` what it expects.
    """

    device: str
    task: Task
    store: str
    data: str
    delta: str
    prepare: tuple[str, ...]
    budget_bytes: int
    predicted_bytes: int
    micro_batch: int
    head_rows: int
    threads: int
    held_aside_rows: int
