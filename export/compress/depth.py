"""Fewer layers: drop blocks at even distances, keep the first and the last.

Offsite-Tuning, https://arxiv.org/abs/2302.04870, section 3.3; the index rule is that of its published code.
"""

from __future__ import annotations

from export.errors import ExportError


def uniform_layers(total: int, keep: int) -> tuple[int, ...]:
    """Which of `total` layers stay when `keep` of them shall. Raises ExportError when that is impossible."""
    require_layers(total, keep)
    if keep == 1:
        return (0,)
    return tuple(round(k * (total - 1) / (keep - 1)) for k in range(keep))


def require_layers(total: int, keep: int) -> None:
    """Raise ExportError where `keep` of `total` layers cannot be kept."""
    if not 1 <= keep <= total:
        msg = f"cannot keep {keep} of {total} layers: give 1 to {total}"
        raise ExportError(msg)
