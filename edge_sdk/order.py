"""What an agent asks of its worker: the file that the worker process reads."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.engine.plan import FAST_STORAGE, Storage
from edge_sdk.providers import Provider
from edge_sdk.wire.messages import Task

MAX_ORDER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Feedback:
    """Files of residuals: `before` is read if it is there, `after` is written; see `edge_sdk.feedback`."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """One task with everything it needs on this device.

    `prepare` is the command that makes the token folder `data` first, empty where it is there already. At most
    `held_aside_rows` of its rows are kept from training, to measure the loss on. `correction` is
    how much larger peaks were on this device than predicted, as a ratio from 1. `read_bytes_s` is the speed of the
    store's medium, None where that is not known, and `cache_bytes` what the page cache may hold. `provider` executes.
    With `feedback` the delta makes up for what earlier ones left out; without, its codec rounds by chance.
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
    read_bytes_s: float | None = None
    cache_bytes: int = 0
    provider: Provider = Provider.CPU
    feedback: Feedback | None = None

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.read_bytes_s is not None and not self.read_bytes_s > 0:
            msg = f"read_bytes_s is {self.read_bytes_s}; it must be above 0"
            raise ValueError(msg)
        if self.cache_bytes < 0:
            msg = f"cache_bytes is {self.cache_bytes}; it must be at least 0"
            raise ValueError(msg)

    def storage(self) -> Storage:
        """Where the weights are read from, for plans."""
        return FAST_STORAGE if self.read_bytes_s is None else Storage(self.read_bytes_s, self.cache_bytes)
