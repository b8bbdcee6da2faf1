"""Slimmed FFNs: where they are, which neurons stay, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edge_sdk.wire.manifest import Surgery
from export.compress.surgery import operate
from export.compress.width import ffn_of, matrix_of, neurons_kept, set_matrix, slim
from export.errors import ExportError, UnsupportedError
from export.foundation import open_foundation
from export.parts import backbone_of, blocks_of
from tests.export.conftest import FAMILIES, LABELS, LM, VARIANTS, Exports
from tests.models import FFN, WIDTH


class Mlp(nn.Module):
    """A block that is an FFN: gated, or not, or as GPT-2 has it."""

    def __init__(self, kind: str, width: int, neurons: int) -> None:
        """Draw it."""
        super().__init__()
        transposed = kind == "transposed"
        make = (lambda i, o: Conv1D(o, i)) if transposed else (lambda i, o: nn.Linear(i, o, bias=kind != "unbiased"))
        self.gate = make(width, neurons) if kind == "gated" else None
        self.up, self.down = make(width, neurons), make(neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        """As blocks do."""
        gate = 1 if self.gate is None else torch.sigmoid(self.gate(x))
        found: Tensor = self.down(torch.tanh(self.up(x)) * gate)
        return found


MLPS = st.builds(
    Mlp, st.sampled_from(["gated", "biased", "unbiased", "transposed"]), st.integers(1, 6), st.integers(1, 9)
)
SHARES = st.floats(0.01, 1)


@given(MLPS, SHARES)
def test_the_others_compute_what_they_did(block: Mlp, share: float) -> None:
    """A slimmed FFN is the whole one without what the missing neurons add; a share of 1 changes nothing, to the bit."""
    before = {name: value.clone() for name, value in block.state_dict().items()}
    ffn = ffn_of(block)
    kept = neurons_kept(ffn, share)
    assert len(kept) == max(1, int(share * ffn.neurons + 0.5))
    x = torch.randn(5, matrix_of(block.up).shape[1])
    gone = torch.ones(ffn.neurons, dtype=torch.bool)
    gone[kept] = False
    whole = matrix_of(block.down).clone()
    set_matrix(block.down, whole.masked_fill(gone, 0.0))
    wanted = block(x).detach()
    set_matrix(block.down, whole)
    slim(ffn, kept)
    torch.testing.assert_close(block(x).detach(), wanted, rtol=1e-4, atol=1e-5)
    assert ffn_of(block).neurons == len(kept)
    if share == 1:
        assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


@given(MLPS, SHARES)
def test_those_with_the_largest_weights_stay(block: Mlp, share: float) -> None:
    """None that goes has a larger L2 norm, of all weights into it and out of it, than one that stays."""
    ffn = ffn_of(block)
    squares = sum(matrix_of(m).double().square().sum(dim=1) for m in ffn.makes.values())
    saliency = (squares + matrix_of(block.down).double().square().sum(dim=0)).sqrt()
    kept = neurons_kept(ffn, share).tolist()
    gone = sorted(set(range(ffn.neurons)) - set(kept))
    assert kept == sorted(kept)
    assert not gone or saliency[gone].max() <= saliency[kept].min() + 1e-12


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_every_family_shows_its_ffn(exports: Exports, name: str) -> None:
    """The tree of modules is enough: no family has code for it."""
    _, task, _ = (FAMILIES | VARIANTS)[name]
    foundation = open_foundation(exports.model(name), task, () if task is LM else LABELS)
    for block in blocks_of(backbone_of(foundation.load())):
        ffn = ffn_of(block)
        assert ffn.neurons == {"dinov2": 2 * WIDTH, "dinov2-gated": 88}.get(name, FFN)
        assert not any("att" in path for path in ffn.modules)
        assert len(ffn.modules) in {2, 3}


def test_what_is_no_ffn_is_refused() -> None:
    """One line that says what was found: experts side by side are as little an FFN as nothing is."""
    experts = nn.ModuleList([Mlp("biased", 4, 6), Mlp("biased", 4, 6)])
    with pytest.raises(UnsupportedError, match=r"cannot slim a ModuleList: .* 0.up \(6, 4\), 0.down \(4, 6\)"):
        ffn_of(experts)
    with pytest.raises(UnsupportedError, match="no products are no FFN"):
        ffn_of(nn.LayerNorm(3))


def test_what_is_adapted_stays_whole(exports: Exports) -> None:
    """Targets are found as peft finds them, by any number of last parts of their names in the model."""
    for target in ("up_proj", "mlp.down_proj", "model.layers.2.mlp.gate_proj"):
        model = open_foundation(exports.model("llama"), FAMILIES["llama"][1], ()).load()
        with pytest.raises(ExportError, match="which is adapted: an adapter must fit the full model"):
            operate(model, Surgery(ffn=0.5), ("q_proj", target))
