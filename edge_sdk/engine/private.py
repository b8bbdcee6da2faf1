"""Steps that hide single examples: each one's gradient is clipped, and noise is added to their sum.

M. Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (arXiv 1607.00133), algorithm 1. With a bound C, a
noise multiplier z, and b examples expected in a step, the gradient of a step is

    (sum over the sampled examples of g / max(1, |g| / C)  +  N(0, (z C)^2)) / b

Each example is sampled by itself with probability b / n (Poisson), so a step has b of them in the mean, and may have
none; which, nobody knows, for the lot is drawn from the kernel's random bytes, as the noise is. Whatever is made of the
gradient (the optimizer, the codec, what the coordinator does) costs no more privacy. An example is a row.

Examples walk one at a time: their gradients are needed apart. What noise costs in quality: docs/results/privacy.md. No
loss is measured: it would tell of the rows without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from edge_sdk.engine.batch import Batch
from edge_sdk.engine.optimizers import clip
from edge_sdk.engine.train import Recipe, StepReport, take_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.noise import true_noise
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.tensors import Array

Noise = Callable[[tuple[int, ...]], Array]
NOT_TOLD = 0.0  # in the place of a loss


def private_steps(
    walk: Walk,
    adapter: dict[str, Array],
    samples: Iterator[Iterable[Batch]],
    recipe: Recipe,
    noise: ExampleNoise,
    draw: Noise = true_noise,
) -> Iterator[StepReport]:
    """Train `adapter` in place; each of `samples` gives a step's rows one at a time. Raises what `train_steps` does."""

    def gradient(names: Sequence[str]) -> tuple[float, dict[str, Array]]:
        return NOT_TOLD, noisy_gradient(walk, adapter, next(samples), names, noise, recipe.batch, draw)

    return take_steps(walk, adapter, recipe, gradient)


def noisy_gradient(
    walk: Walk,
    adapter: dict[str, Array],
    rows: Iterable[Batch],
    names: Sequence[str],
    noise: ExampleNoise,
    expected: int,
    draw: Noise,
) -> dict[str, Array]:
    """The gradient of one step by the named tensors, see the module; `expected` rows are in it in the mean."""
    total = {name: np.zeros_like(adapter[name]) for name in names}
    for row in rows:
        found = walk.gradient(row, adapter, 1 / max(walk.predictions(row), 1)).gradients
        own = {name: found[name] for name in names}
        if not math.isfinite(clip(own, noise.clip_norm)):
            continue  # no bound holds it: it counts as if it were not there
        for name, gradient in own.items():
            np.add(total[name], gradient, out=total[name])
    deviation = noise.noise_multiplier * noise.clip_norm
    noisy = {name: (array + deviation * draw(array.shape)) / expected for name, array in total.items()}
    return {name: array.astype(np.float32) for name, array in noisy.items()}
