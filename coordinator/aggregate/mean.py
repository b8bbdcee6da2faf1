"""Layer-wise weighted mean: `new = old + sum(w_i * delta_i) / sum(w_i)`, over the devices that trained the tensor.

H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1, with the weights normalised per tensor: a layer that only some devices trained is the mean of those, not
drawn towards zero by the others. Sums are float64, so the order of the devices does not matter. One delta at a time is
in memory.

Exact for every adapter but LoRA's pairs of factors, for which it is where A is frozen: B A is linear in B. Not for A
and B together; see `lora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class State:
    """The adapter that the deltas started from, weighted sums (float64), and sums of weights, by name."""

    adapter: Mapping[str, Array]
    sums: Mapping[str, Array]
    weights: Mapping[str, float]


def init(adapter: Mapping[str, Array]) -> State:
    """Nothing was accumulated."""
    return State(adapter, {}, {})


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
    return State(state.adapter, sums, weights)


def finish(state: State) -> dict[str, Array]:
    """The next adapter, float32; what nobody trained is as it was."""
    return {name: _moved(array, state, name) for name, array in state.adapter.items()}


def _moved(array: Array, state: State, name: str) -> Array:
    if name not in state.sums:
        return array
    moved: Array = (array.astype(np.float64) + state.sums[name] / state.weights[name]).astype(np.float32)
    return moved
