"""Multi-Krum: of n deltas, the m that lie closest to their neighbours.

P. Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017, section 4 and
equation 3. With f liars among n >= 2 f + 3 deltas, the score of a delta is the sum of its squared distances to the
n - f - 2 others that are closest to it; those with the m = n - f - 2 lowest scores are chosen, and the mean is theirs,
each with one vote.

Distances are taken where a mean has a meaning. With A frozen, and for every adapter but LoRA's pairs, that is between
deltas number by number. Where both factors train, it is between the changes of the products, `|B_i A_i - B_j A_j|`
(Frobenius), which `Gram` finds from the factors: the product itself is never made. Scales s are alike for all and are
left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.aggregate.lora import A, B, product_change
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array

Start = Mapping[str, Array]


def chosen(squared: Array, byzantine: int, names: Sequence[str]) -> list[int]:
    """Which of n deltas, with `squared` distances (n, n), have the n - f - 2 lowest scores; f is `byzantine`.

    Equal scores are told apart by `names` of what the deltas are, so that nothing depends on who came first.
    """
    count = len(squared)
    near = count - byzantine - 2
    others = np.sort(squared + np.diag(np.full(count, np.inf)), axis=1)
    scores = others[:, :near].sum(axis=1)
    order = sorted(range(count), key=lambda k: (scores[k], names[k]))
    return sorted(order[:near])


def squared_distances(deltas: Sequence[Delta]) -> Array:
    """Between deltas of the same tensors, number by number: (n, n), float64."""
    return _distances(sum(_gram_of(deltas, name) for name in deltas[0].tensors))


def squared_distances_of_products(deltas: Sequence[Delta], starts: Sequence[Start]) -> Array:
    """The same, with the change of the product in place of each pair of factors; `starts` are what devices were given.

    A module of which one factor alone has moved counts with its product, too.
    """
    modules = sorted({name.removesuffix(f) for name in deltas[0].tensors for f in (A, B) if name.endswith(f)})
    plain = [name for name in deltas[0].tensors if not name.endswith((A, B))]
    gram = sum(_gram_of(deltas, name) for name in plain) + sum(_gram_of_products(deltas, starts, m) for m in modules)
    return _distances(gram)


def name_of(delta: Delta) -> str:
    """The same for equal deltas, and for no others."""
    digest = hashlib.sha256()
    for name in sorted(delta.tensors):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(delta.tensors[name]).tobytes())
    return digest.hexdigest()


def _gram_of(deltas: Sequence[Delta], name: str) -> Array:
    rows = np.stack([delta.tensors[name].ravel().astype(np.float64) for delta in deltas])
    gram: Array = rows @ rows.T
    return gram


def _gram_of_products(deltas: Sequence[Delta], starts: Sequence[Start], module: str) -> Array:
    """`<L_i R_i, L_j R_j>` of all pairs, by `tr(R_i' L_i' L_j R_j)`: the sum of (L_i' L_j) * (R_i R_j')."""
    lefts, rights = zip(*(product_change(s, d, module) for d, s in zip(deltas, starts, strict=True)), strict=True)
    begins = np.cumsum([0, *(left.shape[1] for left in lefts[:-1])])
    left, right = np.hstack(lefts), np.vstack(rights)
    terms = (left.T @ left) * (right @ right.T)
    gram: Array = np.add.reduceat(np.add.reduceat(terms, begins, axis=0), begins, axis=1)
    return gram


def _distances(gram: Array | int) -> Array:
    lengths = np.diag(np.asarray(gram))
    squared: Array = np.maximum(lengths[:, None] + lengths[None] - 2 * np.asarray(gram), 0)
    return squared
