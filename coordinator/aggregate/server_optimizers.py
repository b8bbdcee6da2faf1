"""From the mean change of a round to the step of the adapter: the optimizers of a server.

S. J. Reddi et al., Adaptive Federated Optimization, ICLR 2021 (arXiv 2003.00295), algorithm 2, takes the mean change d
of a tensor for a gradient:

    fedavg     x' = x + rate d
    fedavgm    m' = beta1 m + d                 x' = x + rate m'
    fedadam    m' = beta1 m + (1 - beta1) d     x' = x + rate m' / (sqrt(v') + tau)
               v' = beta2 v + (1 - beta2) d^2

m begins at zero and v at tau^2; nothing is corrected for that, as in the paper, whose constants are the defaults of
beta1, beta2 and tau. FedAvgM is T.-M. H. Hsu et al., Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification (arXiv 1909.06335).

- Moments are of single numbers, so a number must mean the same in every round. `lora-svd` makes new factors each round:
  the configuration refuses moments there.
- A tensor that nobody trained in a round has no gradient: it stays as it is, and so do its moments.
- The moments are all of the state, a tensor file: `m/<tensor>` and `v/<tensor>`, float32. The arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coordinator.config import AggregationConfig, ServerOptimizer
from edge_sdk.wire.tensors import Array

KINDS = ("m", "v")


def step(
    config: AggregationConfig, adapter: Mapping[str, Array], changes: Mapping[str, Array], moments: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The next adapter, and its moments; a tensor without moments begins with the first ones."""
    moved, kept = dict(adapter), dict(moments)
    for name, change in changes.items():
        before = {kind: moments[f"{kind}/{name}"].astype(np.float64) for kind in KINDS if f"{kind}/{name}" in moments}
        direction, after = _direction(config, change, before)
        moved[name] = (adapter[name].astype(np.float64) + config.rate * direction).astype(np.float32)
        kept |= {f"{kind}/{name}": moment.astype(np.float32) for kind, moment in after.items()}
    return moved, kept


def _direction(
    config: AggregationConfig, change: Array, before: Mapping[str, Array]
) -> tuple[Array, Mapping[str, Array]]:
    """Where one tensor goes, times the rate, and its moments."""
    if config.optimizer is ServerOptimizer.FEDAVG:
        return change, {}
    m = config.beta1 * before.get("m", np.zeros_like(change))
    if config.optimizer is ServerOptimizer.FEDAVGM:
        m = m + change
        return m, {"m": m}
    m = m + (1 - config.beta1) * change
    v = config.beta2 * before.get("v", np.full_like(change, config.tau**2)) + (1 - config.beta2) * change**2
    return m / (np.sqrt(v) + config.tau), {"m": m, "v": v}
