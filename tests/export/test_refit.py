"""Slimmed FFNs refitted on public text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.manifest import Surgery
from export.compress import refit
from export.compress.refit import refitted, second_moments
from export.compress.surgery import operated_model
from export.compress.width import ffn_of, matrix_of
from export.foundation import open_foundation
from export.parts import backbone_of, blocks_of
from export.public import run, seen
from tests.export.conftest import FAMILIES, LABELS, LM, Exports, public_for, public_rows


@given(st.integers(1, 6), st.integers(2, 12), st.integers(1, 20), st.data())
def test_no_error_is_larger_than_before(out: int, neurons: int, tokens: int, data: st.DataObject) -> None:
    """On the text that it was fitted on, however short; with all neurons kept the matrix stays as it is."""
    count = data.draw(st.integers(1, neurons))
    kept = torch.randperm(neurons)[:count].sort().values
    matrix, values = torch.randn(out, neurons), torch.randn(tokens, neurons).double()
    moments = values.T @ values
    found = refitted(matrix, kept, moments)
    wanted = values @ matrix.double().T
    before = (values[:, kept] @ matrix.double()[:, kept].T - wanted).norm()
    assert (values[:, kept] @ found.double().T - wanted).norm() <= before * (1 + 1e-6) + 1e-5
    torch.testing.assert_close(
        refitted(matrix, torch.arange(neurons), moments), matrix, rtol=1e-4, atol=1e-4 * float(matrix.abs().max())
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_blocks_are_nearer_to_the_whole(exports: Exports, name: str) -> None:
    """In each block the FFN's output, of the whole model's neurons that stay, is nearer to the whole FFN's."""
    _, task, _ = FAMILIES[name]
    foundation = open_foundation(exports.model(name), task, () if task is LM else LABELS)
    public = public_for(foundation, 9)
    model, models = foundation.load(), {}
    for rows in (0, 9):
        models[rows] = operated_model(foundation, Surgery(ffn=0.5), ("nothing",), public=public if rows else None)
    takes = [ffn_of(block).takes[1] for block in blocks_of(backbone_of(model))]
    values: list[list[torch.Tensor]] = [[] for _ in takes]
    with seen(takes) as found:
        for mask, _ in run(model, public):
            for k, (a, _) in found.items():
                values[k].append(a.reshape(*mask.shape, -1)[mask])
    for k, take in enumerate(takes):
        neurons, whole = torch.cat(values[k]), matrix_of(take)
        plain, better = (matrix_of(ffn_of(blocks_of(backbone_of(models[rows]))[k]).takes[1]) for rows in (0, 9))
        kept = [j for j in range(whole.shape[1]) if any(torch.equal(whole[:, j], column) for column in plain.T)]
        errors = [float((neurons[:, kept] @ w.T - neurons @ whole.T).norm()) for w in (plain, better)]
        assert errors[1] < 0.95 * errors[0]


def test_moments_are_the_same_however_many_fit_at_once(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for the moments of one product at a time, the model runs once for each."""
    model = open_foundation(exports.model("llama"), LM, ()).load()
    takes = [ffn_of(block).takes[1] for block in blocks_of(backbone_of(model))]
    at_once = list(second_moments(model, takes, public_rows()))
    monkeypatch.setattr(refit, "AT_ONCE_BYTES", 1)
    for one, other in zip(second_moments(model, takes, public_rows()), at_once, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.diagonal().min()) >= 0
