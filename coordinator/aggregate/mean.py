"""Layer-wise weighted mean: the change of a tensor is `sum(w_i * delta_i) / W`, w_i the device's examples.

H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. Where devices trained different layers, W is a choice, made for each tensor:

- `trained`: the sum over the devices that trained it: the mean of those, not drawn towards zero by the others
  (CAFF: Efficient Federated Finetuning of Tiny Transformers with Resource-Constrained Devices, arXiv 2411.07826);
- `all`: the sum over all devices of the round, as if those without the tensor had left it as it was.

Sums are float64, so the order of the devices does not matter. One delta at a time is in memory.

Exact for every adapter but LoRA's pairs of factors, for which it is where A is frozen: B A is linear in B. Not for A
and B together; see `lora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.config import MeanOver
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class State:
    """The adapter that the deltas started from; by name, weighted sums (float64) and sums of weights; all weights."""

    adapter: Mapping[str, Array]
    sums: Mapping[str, Array]
    weights: Mapping[str, float]
    total: float


def init(adapter: Mapping[str, Array]) -> State:
    """Nothing was accumulated."""
    return State(adapter, {}, {}, 0.0)


def accumulate(state: State, delta: Delta, weight: float) -> State:
    """With one more device. Raises KeyError for a tensor that the adapter lacks, ValueError for a weight of zero."""
    if not weight > 0:
        msg = f"a weight of {weight}"
        raise ValueError(msg)
    sums, weights = dict(state.sums), dict(state.weights)
    for name, array in delta.tensors.items():
        change = array.astype(np.float64) * weight
        sums[name] = sums[name] + change if name in sums else np.zeros(state.adapter[name].shape) + change
        weights[name] = weights.get(name, 0.0) + weight
    return State(state.adapter, sums, weights, state.total + weight)


def finish(state: State, over: MeanOver) -> dict[str, Array]:
    """The mean change of each tensor that somebody trained, float64."""
    wholes = state.weights if over is MeanOver.TRAINED else dict.fromkeys(state.sums, state.total)
    return {name: array / wholes[name] for name, array in state.sums.items()}
