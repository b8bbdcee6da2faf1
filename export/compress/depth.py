"""Fewer layers: drop blocks at even distances, keeping the first and the last; or those with the least influence.

Even distances: Offsite-Tuning, https://arxiv.org/abs/2302.04870, section 3.3; the index rule is that of its published
code. Influence is measured by `export.compress.importance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from export.errors import ExportError

Choice = Callable[[Sequence[int], int], tuple[int, ...]]  # of these layers, so many


def uniform_layers(total: int, keep: int) -> tuple[int, ...]:
    """Which of `total` layers stay when `keep` of them shall. Raises ExportError when that is impossible."""
    _require_layers(total, keep)
    if keep == 1:
        return (0,)
    return tuple(round(k * (total - 1) / (keep - 1)) for k in range(keep))


def most_influential(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers with the largest influence, in order; of equals the earlier. Raises ExportError."""
    _require_layers(len(influence), keep)
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:keep]))


def layers_beside(total: int, keep: int, trained: Sequence[int], choose: Choice) -> tuple[int, ...]:
    """Which of `total` layers stay when `keep` of them shall, and some are `trained`: those all do, as the emulator is
    what lies beside them; `choose` chooses of all, where all train or none. Raises ExportError when that is impossible.
    """
    frozen = [layer for layer in range(total) if layer not in trained]
    if not frozen or not trained or not 1 <= keep <= total:
        return choose(range(total), keep)
    if keep < len(trained):
        msg = f"cannot keep {keep} of {total} layers: {len(trained)} of them train, give {len(trained)} to {total}"
        raise ExportError(msg)
    beside = choose(frozen, keep - len(trained)) if keep > len(trained) else ()
    return tuple(sorted({*trained, *beside}))


def _require_layers(total: int, keep: int) -> None:
    if not 1 <= keep <= total:
        msg = f"cannot keep {keep} of {total} layers: give 1 to {total}"
        raise ExportError(msg)


def ends(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """Where the next one begins, of each of the kept `layers` of `total`: up to there it stands for dropped ones."""
    return (*layers[1:], total)


def bridged(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """Which of the kept `layers` of `total` are followed by dropped ones."""
    return tuple(layer for layer, end in zip(layers, ends(layers, total), strict=True) if end > layer + 1)
