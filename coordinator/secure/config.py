"""What the configuration says of secure sums: `[secure]`, and what it makes impossible."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.secure.ring import LARGEST, levels_for
from edge_sdk.wire.secure.said import MAX_PEERS, Masking
from edge_sdk.wire.settings import number

BLIND = (
    "secure sum: of a round's deltas the coordinator sees the sum alone. So it cannot check the numbers or the size of "
    "any one of them, and nobody is put into quarantine for what is in a delta"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureConfig:
    """A sum of which the coordinator sees no part; with this table there is no other way into the adapter.

    Each device cuts its delta's numbers off at `bound`, and makes integers of them. Each has `neighbours` that its
    masks are with (0: as many as `coordinator.secure.graph` says). Each step waits `step_s` for devices that are late.
    """

    bound: float = number(1e-6, 1e6, 4.0)
    neighbours: int = number(0, MAX_PEERS, 0)
    step_s: float = number(1, 86_400, 120.0)


@dataclass(frozen=True, slots=True)
class Terms:
    """What tasks say of it: at most `most` devices are in a sum, each held to `clip_norm` by itself."""

    config: SecureConfig
    most: int
    clip_norm: float

    def masking(self, sum_id: str, whole: int) -> Masking:
        """For a task of `whole` examples."""
        return Masking(sum_id, self.config.bound, levels_for(self.most), whole, self.clip_norm)


def too_heavy(most: int, whole: int) -> bool:
    """Whether the weights of so many devices could come to more than an integer of the sum holds."""
    return most * whole > LARGEST
