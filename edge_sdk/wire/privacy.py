"""How a device hides single examples: what a task says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LARGEST_NORM: Final = 1e9
LARGEST_NOISE: Final = 1e6


@dataclass(frozen=True, slots=True)
class ExampleNoise:
    """Each example's gradient is clipped to `clip_norm`; normal noise of `noise_multiplier` times that is added to a
    step's sum. Examples are sampled one by one, the task's `batch` of them in the mean.
    """

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Refuse what bounds nothing."""
        if not 0 < self.clip_norm <= LARGEST_NORM or not 0 <= self.noise_multiplier <= LARGEST_NOISE:
            msg = f"a bound of {self.clip_norm} with noise of {self.noise_multiplier}"
            raise ValueError(msg)


def rows_at_once(batch: int, noise: ExampleNoise | None) -> int:
    """How many rows of a task's batch walk together: examples that are hidden one by one, one by one."""
    return batch if noise is None else 1
