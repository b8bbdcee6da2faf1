"""Fewer layers: drop blocks at even distances, keep the first and the last.

Offsite-Tuning, https://arxiv.org/abs/2302.04870, section 3.3; the index rule is that of its published code.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.errors import ExportError


def uniform_layers(total: int, keep: int) -> tuple[int, ...]:
    """Which of `total` layers stay when `keep` of them shall. Raises ExportError when that is impossible."""
    if not 1 <= keep <= total:
        msg = f"cannot keep {keep} of {total} layers: give 1 to {total}"
        raise ExportError(msg)
    if keep == 1:
        return (0,)
    return tuple(round(k * (total - 1) / (keep - 1)) for k in range(keep))


def layers_beside(total: int, keep: int, trained: Sequence[int]) -> tuple[int, ...]:
    """Which of `total` layers stay when `keep` of them shall, and some are `trained`: those all do, as the emulator is
    what lies beside them; of all, evenly, where all train or none. Raises ExportError when that is impossible.
    """
    frozen = [layer for layer in range(total) if layer not in trained]
    if not frozen or not trained or not 1 <= keep <= total:
        return uniform_layers(total, keep)
    if keep < len(trained):
        msg = f"cannot keep {keep} of {total} layers: {len(trained)} of them train, give {len(trained)} to {total}"
        raise ExportError(msg)
    beside = uniform_layers(len(frozen), keep - len(trained)) if keep > len(trained) else ()
    return tuple(sorted({*trained, *(frozen[k] for k in beside)}))
