"""Differential privacy of the devices against whoever sees the adapters, with the coordinator trusted.

H. B. McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018 (arXiv 1710.06963), with a
fixed denominator: deltas d_i of norm at most C, of a round in which m are expected, move the adapter by

    (sum_i d_i + N(0, (z C)^2)) / m

however many come: who drops out adds zero. C may follow the deltas' norms, G. Andrew et al., Differentially Private
Learning with Adaptive Clipping, NeurIPS 2021 (arXiv 1905.03871), algorithm 1 and theorem 1:

    b = (sum_i ([|d_i| <= C] - 1/2) + N(0, s^2)) / m + 1/2      C' = C exp(-rate (b - quantile))

with the noise on the sum multiplied by z' = (z^-2 - (2 s)^-2)^(-1/2): sum and count together are one mechanism of
multiplier z.

**What is counted.** Neighbours are fleets in which one device has other data (replace one), so the sum's sensitivity is
2 C, and the ratio of noise to sensitivity is z / 2: that is what `dp_accounting` is given. A round for which `drawn` of
the `present` devices were drawn by lot is a Gaussian mechanism on a sample without replacement; where all take part, it
is one without any sampling. Rounds compose by Renyi divergences. Attempts that came to nothing release nothing.

**What is assumed** is in `doubts`: where one of them holds, there is no guarantee, and that is what is said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.config import Config
from coordinator.guards import PrivacyConfig
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array

Noise = Callable[[tuple[int, ...]], Array]  # standard normal numbers of a shape, float64
ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 512)  # of Renyi divergences; more would gain a few per cent
COVERS: Final = (
    "the adapters of all versions; not what devices report of themselves (losses, sizes, times), nor who took part, "
    "which the ledger and this report have for the coordinator alone"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What holds for one round: the norm that deltas are held to, and how many are expected."""

    clip_norm: float
    expected: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What one round was: how many were `present`, `drawn`, and `delivered`; its bound C, and the next round's."""

    round: int
    present: int
    drawn: int
    delivered: int
    clip_norm: float
    next_clip_norm: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Epsilon so far, or None and the reasons why there is no guarantee; neighbours differ as `of` says."""

    epsilon: float | None
    delta: float
    doubts: tuple[str, ...]
    of: str = "a device's data is replaced"

    def __str__(self) -> str:
        """A line for people."""
        if self.epsilon is None:
            return f"no guarantee: {'; '.join(self.doubts)}"
        return f"epsilon {self.epsilon:.3g} so far, at delta {self.delta:g}, where {self.of}"


def private_mean(
    shapes: Mapping[str, tuple[int, ...]], deltas: Iterable[Delta], config: PrivacyConfig, bounds: Bounds, noise: Noise
) -> tuple[dict[str, Array], float]:
    """The noisy mean change of every tensor in `shapes`, float64, and the next round's C.

    Each has noise, whoever trained it. One delta at a time is in memory.
    """
    sums = {name: np.zeros(shape) for name, shape in shapes.items()}
    within = 0.0
    for delta in deltas:
        norm = delta.norm()
        scale = min(1.0, bounds.clip_norm / norm) if norm else 1.0
        within += 0.5 if norm <= bounds.clip_norm else -0.5
        for name, array in delta.tensors.items():
            sums[name] += scale * array.astype(np.float64)
    deviation = config.delta_noise_multiplier * bounds.clip_norm
    changes = {name: (total + deviation * noise(total.shape)) / bounds.expected for name, total in sums.items()}
    if not config.quantile:
        return changes, bounds.clip_norm
    share = (within + config.count_noise * float(noise((1,))[0])) / bounds.expected + 0.5
    return changes, bounds.clip_norm * math.exp(-config.clip_rate * (share - config.quantile))


def expected_devices(config: Config) -> int:
    """The denominator: fixed by the configuration, so that nobody's data decides it."""
    return config.rounds.participants or config.rounds.devices


def doubts(config: Config) -> tuple[str, ...]:
    """Why nothing can be promised of a run of this configuration."""
    return tuple(_doubts(config))


def _doubts(config: Config) -> Iterator[str]:
    codec, keeps = config.training.delta_codec, config.aggregation.rule.keeps_coordinates
    if config.privacy is None or not config.privacy.noise_multiplier:
        yield "there is no noise"
    if codec is not DeltaCodec.FP32 and keeps:
        yield f"devices keep what {codec.value} leaves out of a delta, and send it in another round"
    if config.participant is not None:
        yield f"{config.participant.device}, this machine's own device, is in every round and is not drawn"
    if config.adapter.start is not None:
        yield "adapter.start comes from another run, of which nothing is known here"


def standing(config: Config, spent: Sequence[Spent]) -> Standing:
    """What can be promised after these rounds. Raises ValueError without a [privacy] table."""
    if config.privacy is None:
        msg = "a run without [privacy]"
        raise ValueError(msg)
    found = doubts(config)
    delta = config.privacy.delta
    return Standing(None if found else epsilon(spent, delta), delta, found)


def epsilon(spent: Sequence[Spent], delta: float) -> float:
    """Of all these rounds together, one device's data being replaced; 0 for none."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)
    alike = Counter((row.noise_multiplier, row.present, row.drawn) for row in spent)
    for (multiplier, present, drawn), rounds in alike.items():
        event = dp_accounting.GaussianDpEvent(multiplier / 2)  # noise to sensitivity, which is 2 C
        if drawn < present:
            event = dp_accounting.SampledWithoutReplacementDpEvent(present, drawn, event)
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta)) if spent else 0.0
