"""The mean of LoRA's products, brought back to rank r.

A device's module adds `s * B_i @ A_i`, B (out, r), A (r, in). Federated averaging means
`P = sum(w_i B_i A_i) / sum(w_i)`, whose rank is up to r times the number of devices. The best rank-r approximation
(Eckart and Young 1936) is its truncated singular value decomposition, which never needs P itself: with the stacked
factors `L = [w_1 B_1 ...]` and `R = [A_1; ...]`, the thin QR decompositions `L = Q_l R_l`, `R' = Q_r R_r` and the small
SVD `R_l R_r' = U S V'` give `P = (Q_l U) S (Q_r V)'` (J. Bai et al., Federated Fine-tuning of Large Language Models
under Heterogeneous Tasks and Client Resources, 2024, aggregate and redistribute in this way).

The factors come out balanced, `B = Q_l U sqrt(S)`, `A = sqrt(S) (Q_r V)'`: neither trains faster than the other.

- A device of a lower rank is given the best approximation of that rank. What it changed there, its product less the
  one that it was given, is added to the product as it was: a low rank takes nothing away.
- A device that did not train a module counts there with the product as it was, or not at all; see `mean`.
- A device that comes late was given the product of its own round. What it changed there is added, less of it the later
  it comes (`scale`), to the product as it is. Its factors would mean nothing beside others than those it was given.
- A server's learning rate other than 1 goes from the product as it was so far towards the mean, or beyond it.
- Where nobody changed a module, its factors stay bit for bit: a decomposition would only rotate them.
- A direction in which P is zero gets a zero column in B and a unit row, scaled like its neighbours, in A. Zeros on both
  sides would be a saddle that no gradient leaves.
- Tensors that are no LoRA factors (a classification head) are averaged plainly; see `mean`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.aggregate import mean
from coordinator.config import MeanOver
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array

A, B = "lora_A", "lora_B"
NEGLIGIBLE = 1e-7  # singular values below this share of the largest are rounding of float32


@dataclass(frozen=True, slots=True)
class Stack:
    """A weighted sum of products as `left @ right` (out, k) @ (k, in), float64, and the sum of the weights."""

    left: Array
    right: Array
    weight: float
    changed: bool


@dataclass(frozen=True, slots=True)
class State:
    """`stacks` by module; everything else is in `plain`."""

    plain: mean.State
    stacks: Mapping[str, Stack]


@dataclass(frozen=True, slots=True)
class Truncation:
    """What rank r lost, squared, and what there was, squared (Frobenius), of one module or of several."""

    lost: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Truncation) -> Truncation:
        """Of both."""
        return Truncation(self.lost + other.lost, self.whole + other.whole)

    @property
    def relative(self) -> float:
        """`|P - B A| / |P|`, zero where P is zero."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


def init(adapter: Mapping[str, Array]) -> State:
    """Nothing was accumulated. `adapter` holds `<module>.lora_A` and `<module>.lora_B` pairs, and other tensors."""
    return State(mean.init(adapter), {})


def accumulate(state: State, delta: Delta, weight: float, start: Mapping[str, Array], scale: float = 1.0) -> State:
    """With one more device, which was given `start`: the adapter, at a lower rank perhaps, or one before it.

    A module of which only one factor moved has the other as it was.
    """
    stacks = dict(state.stacks)
    modules = {name.removesuffix(suffix) for name in delta.tensors for suffix in (A, B) if name.endswith(suffix)}
    for module in sorted(modules):
        left, right = _product(state.plain.adapter, start, delta, module, scale)
        changed = any(np.any(delta.tensors[module + f]) for f in (A, B) if module + f in delta.tensors)
        stacks[module] = _stacked(stacks.get(module), weight * left, right, weight, changed=changed)
    others = {name: array for name, array in delta.tensors.items() if not name.endswith((A, B))}
    return State(mean.accumulate(state.plain, Delta(others) * scale, weight), stacks)


def finish(state: State, over: MeanOver, rate: float) -> tuple[dict[str, Array], Truncation]:
    """The next factors of each module that somebody changed, float32, and what was lost; `rate` is the server's."""
    factors, truncation = dict[str, Array](), Truncation()
    for module, stack in state.stacks.items():
        if stack.changed:
            a, b = state.plain.adapter[module + A], state.plain.adapter[module + B]
            whole = stack.weight if over is MeanOver.TRAINED else state.plain.total
            left, right = _moved(stack, a, b, rate, whole)
            factors[module + A], factors[module + B], lost = best_of_rank(left, right, a)
            truncation += lost
    return factors, truncation


def at_rank(adapter: Mapping[str, Array], rank: int) -> dict[str, Array]:
    """The adapter with each pair of factors of a higher rank at its best approximation of this one."""
    found = dict(adapter)
    for module in (name.removesuffix(A) for name, array in adapter.items() if name.endswith(A) and len(array) > rank):
        a, b = (adapter[module + factor].astype(np.float64) for factor in (A, B))
        found[module + A], found[module + B], _ = best_of_rank(b, a, adapter[module + A][:rank])
    return found


def best_of_rank(left: Array, right: Array, before: Array) -> tuple[Array, Array, Truncation]:
    """The best A (r, in) and B for `left @ right`, r as in `before`, which stays as A where the product is zero."""
    rank = len(before)
    columns, values, rows = _svd(left, right)
    truncation = Truncation(float(np.sum(values[rank:] ** 2)), float(np.sum(values**2)))
    kept = int(np.sum(values[:rank] > NEGLIGIBLE * values[0])) if values[0] > 0 else 0
    b = np.zeros((len(left), rank), np.float32)
    if kept == 0:
        return before, b, truncation
    roots = np.sqrt(values[:kept])
    b[:, :kept] = columns[:, :kept] * roots
    a = _completed(rows[:rank], rank, before)
    a[:kept] *= roots[:, None]
    a[kept:] *= math.sqrt(float(np.mean(values[:kept])))
    return a.astype(np.float32), b, truncation


def product_change(start: Mapping[str, Array], delta: Delta, module: str) -> tuple[Array, Array]:
    """What a device changed of a module's product, as factors (out, 2 r) and (2 r, in), float64."""
    a, b = (_after(start, delta, module + factor) for factor in (A, B))
    before = {f: start[module + f].astype(np.float64) for f in (A, B)}
    return np.hstack([b, -before[B]]), np.vstack([a, before[A]])


def _moved(stack: Stack, a: Array, b: Array, rate: float, whole: float) -> tuple[Array, Array]:
    """`P + rate (S - w P) / whole` as factors: P is `b @ a`, as it was, S the stack and w its weight."""
    left, right = rate * stack.left / whole, stack.right
    stays = 1.0 - rate * (stack.weight / whole)
    if stays == 0.0:
        return left, right
    return np.hstack([left, stays * b.astype(np.float64)]), np.vstack([right, a.astype(np.float64)])


def _product(
    adapter: Mapping[str, Array], start: Mapping[str, Array], delta: Delta, module: str, scale: float
) -> tuple[Array, Array]:
    """`P + scale (P_i - P_0)` as factors, float64: the adapter's product, and what a device made of that of `start`."""
    a, b = (_after(start, delta, module + factor) for factor in (A, B))
    if start is adapter and scale == 1:
        return b, a
    given, whole = ({f: each[module + f].astype(np.float64) for f in (A, B)} for each in (start, adapter))
    return np.hstack([scale * b, -scale * given[B], whole[B]]), np.vstack([a, given[A], whole[A]])


def _after(adapter: Mapping[str, Array], delta: Delta, name: str) -> Array:
    array = adapter[name].astype(np.float64)
    return array + delta.tensors[name] if name in delta.tensors else array


def _stacked(stack: Stack | None, left: Array, right: Array, weight: float, *, changed: bool) -> Stack:
    """One more product; a stack larger than the product itself is brought back to full rank, without loss."""
    if stack is None:
        return Stack(left, right, weight, changed)
    left, right = np.hstack([stack.left, left]), np.vstack([stack.right, right])
    if left.shape[1] > 2 * min(len(left), right.shape[1]):
        columns, values, rows = _svd(left, right)
        left, right = columns * values, rows
    return Stack(left, right, stack.weight + weight, stack.changed or changed)


def _svd(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Of `left @ right`: columns (out, k), values (k,), rows (k, in). Each row's largest entry is positive."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    columns, rows = q_left @ u, vt @ q_right.T
    signs = np.sign(rows[np.arange(len(rows)), np.argmax(np.abs(rows), axis=1)])
    return columns * signs, values, rows * signs[:, None]


def _completed(rows: Array, rank: int, before: Array) -> Array:
    """`rank` rows that begin with `rows` and go on orthonormally within `before`, zero where dimensions run out."""
    basis, _ = np.linalg.qr(np.vstack([rows, before.astype(np.float64)]).T)
    completed = np.zeros((rank, rows.shape[1]))
    completed[: basis.shape[1]] = basis.T[:rank]
    completed[: len(rows)] = rows
    return completed
