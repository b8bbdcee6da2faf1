"""What the configuration says against deltas that lie: `[checks]`, and how the middle of a round's deltas is found.

What follows from it is in `validate`, `quarantine` and `aggregate`.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.wire.settings import number


class OverNorm(enum.Enum):
    """What becomes of a delta that is larger than allowed."""

    CLIP = "clip"
    REFUSE = "refuse"


class Estimator(enum.Enum):
    """What is taken of a round's deltas; see `coordinator.aggregate`."""

    MEAN = "mean"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"
    MULTI_KRUM = "multi-krum"

    @property
    def by_number(self) -> bool:
        """Whether it is taken of each number by itself."""
        return self in {Estimator.MEDIAN, Estimator.TRIMMED_MEAN}

    def least(self, byzantine: int) -> int:
        """The fewest deltas of which it holds, with so many liars among them."""
        return {Estimator.MEAN: 1, Estimator.MULTI_KRUM: 2 * byzantine + 3}.get(self, 2 * byzantine + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksConfig:
    """A delta's size is the root of the mean of its numbers' squares, so that levels that train less compare.

    It may be `norm_factor` times the median size of the rounds before (0: as large as it likes); what is larger is
    scaled down to that, or refused. After every `strikes` refused deltas (0: never) a device gets no task for the
    rest of the round and `quarantine_rounds` more.
    """

    norm_factor: float = number(0, 1e6, 10.0)
    over_norm: OverNorm = OverNorm.CLIP
    strikes: int = number(0, 1_000_000, 3)
    quarantine_rounds: int = number(1, 100_000, 10)

    def size_limit(self, sizes: Sequence[float]) -> float | None:
        """The largest size allowed beside `sizes`, or None where nothing bounds it.

        The median is at most that of an honest device as long as more than half of them are honest.
        """
        median = statistics.median(sizes) if sizes else 0.0
        return self.norm_factor * median or None


class Where(enum.Enum):
    """Who adds the noise, and so who has to be trusted: the coordinator, to its sums of deltas, which hides devices; or
    each device, to its steps, which hides its single examples.
    """

    COORDINATOR = "coordinator"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy; see `coordinator.privacy`, and `coordinator.example_privacy` where devices add the noise:
    of each example's gradient `clip_norm` is the bound then, and of a step's sum `noise_multiplier` the noise.

    The norm of each delta is held to `clip_norm`, and Gaussian noise of `noise_multiplier` times that is added to their
    sum. With a `quantile` (0: none) the bound moves from round to round, at the rate `clip_rate`, to where such a share
    of deltas is below it; `count_noise` is the standard deviation of the noise on their number. `delta` is what epsilon
    is told for.
    """

    where: Where = Where.COORDINATOR
    noise_multiplier: float = number(0, 1e6)
    clip_norm: float = number(1e-9, 1e9)
    delta: float = number(1e-15, 0.5)
    quantile: float = number(0, 0.99, 0.0)
    clip_rate: float = number(1e-3, 10, 0.2)
    count_noise: float = number(0, 1e6, 0.0)

    @property
    def delta_noise_multiplier(self) -> float:
        """Of the noise on the sum of deltas, so that with the noise on the count both are worth `noise_multiplier`."""
        if not self.quantile or not self.noise_multiplier:
            return self.noise_multiplier
        return 1 / math.sqrt(self.noise_multiplier**-2 - (2 * self.count_noise) ** -2)
