"""Which layers stay when they are ranked by what they do to public data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.compress.depth import most_influential
from export.compress.importance import block_influence
from export.errors import ExportError
from export.evaluate import Tokens
from export.foundation import open_foundation
from tests.export.conftest import LM, Exported, Exports, public_for, public_rows


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.data())
def test_none_that_goes_matters_more(influence: list[float], data: st.DataObject) -> None:
    """As many stay as asked for, in order; whoever keeps more keeps all that whoever keeps fewer does."""
    keep = data.draw(st.integers(1, len(influence)))
    kept = most_influential(influence, keep)
    assert len(kept) == keep
    assert list(kept) == sorted(set(kept))
    gone = set(range(len(influence))) - set(kept)
    assert all(influence[a] <= influence[b] for a in gone for b in kept)
    assert set(kept) <= set(most_influential(influence, min(keep + 1, len(influence))))


def test_impossible_depths_are_refused() -> None:
    """The line of the other rule."""
    with pytest.raises(ExportError, match="cannot keep 3 of 2 layers: give 1 to 2"):
        most_influential((0.1, 0.2), 3)


def test_a_block_that_does_nothing_has_no_influence(exports: Exports) -> None:
    """A block whose two halves add nothing passes its input on, and is the first to go; padding does not count."""
    foundation = open_foundation(exports.model("llama"), LM, ())
    model = foundation.load()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_parameter(f"model.layers.2.{name}.weight").zero_()
    public = public_rows(11, 9)  # more rows than run at once
    found = block_influence(model, public)
    assert found[2] == pytest.approx(0, abs=1e-12)
    assert min(found[:2] + found[3:]) > 1e-4
    assert most_influential(found, 3) == (0, 1, 3)
    others = np.where(np.arange(9) < public.lengths[:, None], public.ids, 5)
    again = block_influence(model, Tokens(others, public.lengths, public.labels))
    np.testing.assert_allclose(again, found, rtol=1e-6, atol=1e-12)


def test_every_familys_blocks_are_measured(any_exported: Exported) -> None:
    """One number a block, between 0 and 2."""
    adapted = any_exported.program.adapted
    found = block_influence(adapted.base, public_for(adapted.foundation))
    assert len(found) == adapted.foundation.spec.layers
    assert all(0 < one < 2 for one in found)
