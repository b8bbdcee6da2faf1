"""Matrices of lower rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from transformers.pytorch_utils import Conv1D

from export.compress.rank import factors, replace, require_saving
from export.compress.refit import RIDGE
from export.compress.width import matrix_of
from export.errors import ExportError

MATRICES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-100, 100, width=32)
)


@given(MATRICES, st.data())
def test_the_error_is_what_was_cut_off(matrix: np.ndarray, data: st.DataObject) -> None:
    """In squares it is the sum over the singular values left out, so nothing but rounding at full rank."""
    full = min(matrix.shape)
    rank = data.draw(st.integers(1, full))
    left, right = factors(torch.from_numpy(matrix), rank)
    assert (left.shape, right.shape) == ((len(matrix), rank), (rank, matrix.shape[1]))
    error = np.linalg.norm((left.double() @ right.double()).numpy() - matrix)
    cut = np.linalg.norm(np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[rank:])
    assert error == pytest.approx(cut, rel=1e-4, abs=1e-5 * (1 + float(np.linalg.norm(matrix))))


@pytest.mark.parametrize("module", [nn.Linear(9, 7), nn.Linear(9, 7, bias=False), Conv1D(7, 9)])
def test_a_module_becomes_two(module: nn.Module) -> None:
    """Where the matrix has that rank, they compute what it did, bias included, from fewer numbers."""
    weight = torch.randn(9, 2) @ torch.randn(2, 7)
    module.weight = nn.Parameter(weight if isinstance(module, Conv1D) else weight.T.contiguous())
    block, x = nn.ModuleDict({"inner": nn.ModuleDict({"out": module})}), torch.randn(5, 9)
    wanted, before = module(x).detach(), sum(p.numel() for p in block.parameters())
    replace(block, "inner.out", factors(matrix_of(module), 2))
    torch.testing.assert_close(block.get_submodule("inner.out")(x).detach(), wanted, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in block.parameters()) == before - 7 * 9 + 2 * (7 + 9)


def test_what_saves_nothing_is_refused() -> None:
    """The line names the largest rank that does: 7 x 9 are 63 numbers, three columns and rows 48."""
    with pytest.raises(ExportError, match=r"a rank of 4 saves nothing of out \(7 x 9\): give at most 3"):
        require_saving("out", nn.Linear(9, 7), 4)
    with pytest.raises(ExportError, match="norm is a LayerNorm, not a product with a matrix"):
        require_saving("norm", nn.LayerNorm(9), 1)
    require_saving("out", nn.Linear(9, 7), 3)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 30), st.data())
def test_a_refit_is_nearer_on_its_text(out: int, width: int, tokens: int, data: st.DataObject) -> None:
    """On the text whose moments it was given no error is larger than without; at full rank there is none."""
    full = min(out, width)
    rank = data.draw(st.integers(1, full))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    matrix, inputs = torch.randn(out, width, generator=generator), torch.randn(tokens, width, generator=generator)
    inputs = (inputs * torch.logspace(0, 2, width)).double()
    wanted = inputs @ matrix.double().T

    def error(rank: int, moments: torch.Tensor | None) -> float:
        left, right = factors(matrix, rank, moments)
        return float((inputs @ (left.double() @ right.double()).T - wanted).norm() / wanted.norm())

    moments = inputs.T @ inputs
    ridge = (RIDGE * moments.diagonal().mean()).sqrt() * matrix.double().norm() / wanted.norm()
    assert error(rank, moments) <= error(rank, None) + float(ridge) + 1e-5
    assert error(full, moments) < 1e-4
