"""Compression: which layers stay, and how matrices are rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.compress.depth import uniform_layers
from export.compress.quantize import dequantize_rows, quantize_rows, quantize_tensors
from export.errors import ExportError
from export.levels import LevelRequest, default_name, resolve_level


@given(st.integers(1, 200), st.data())
def test_layers_are_kept_evenly(total: int, data: st.DataObject) -> None:
    """As many as asked for, in order, first and last among them, at distances that differ by at most one."""
    keep = data.draw(st.integers(1, total))
    layers = uniform_layers(total, keep)
    assert len(layers) == keep
    assert layers[0] == 0
    if keep > 1:
        assert layers[-1] == total - 1
        steps = np.diff(layers)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1
    if keep == total:
        assert layers == tuple(range(total))


def test_the_index_rule_is_offsite_tunings() -> None:
    """round(i (L - 1) / (k - 1)), by hand for 30 layers."""
    assert uniform_layers(30, 5) == (0, 7, 14, 22, 29)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_impossible_depths_are_refused(keep: int) -> None:
    """One line that says what is possible."""
    with pytest.raises(ExportError, match="give 1 to 4"):
        uniform_layers(4, keep)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e4, 1e4, width=32)))
def test_rounding_is_within_half_a_step(matrix: np.ndarray) -> None:
    """Each weight is off by at most half of its row's scale, rows of zeros stay zero, -128 is never used."""
    quantized, scale = quantize_rows(matrix)
    assert quantized.dtype == np.int8
    assert quantized.min(initial=0) >= -127
    error = np.abs(dequantize_rows(quantized, scale) - matrix)
    assert (error <= 0.5 * scale[:, None] * (1 + 1e-4) + 1e-30).all()


def test_only_matrices_are_quantized() -> None:
    """Norms and biases stay float32; a matrix gets its scale."""
    found = quantize_tensors({"norm": np.ones(4, np.float32), "w": np.ones((2, 4), np.float32)})
    assert {name: array.dtype.name for name, array in found.items()} == {
        "norm": "float32",
        "w": "int8",
        "w.scale": "float32",
    }


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (LevelRequest("a", 4, None, None), "4 bits are not supported; supported are 32, 8"),
        (LevelRequest("a", 32, None, 5), "give 1 to 4"),
        (LevelRequest("a", 32, 2, 3), "give 1 to 2"),
        (LevelRequest("../a", 32, None, None), "is no level name"),
    ],
)
def test_impossible_levels_are_refused(request_: LevelRequest, message: str) -> None:
    """One line that says what is possible."""
    with pytest.raises(ExportError, match=message):
        resolve_level(request_, 4)


def test_levels_are_named_by_what_they_are() -> None:
    """The default name tells bits, layers and trained layers, where they are not all."""
    assert default_name(32, None, None) == "fp32"
    assert default_name(8, 24, 6) == "int8-24layers-last6"
