"""Rounding to 4 bits for what a matrix is multiplied with."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edge_sdk.wire.manifest import LevelSpec, Refit
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged
from export.compress.calibrate import on_grid
from export.compress.quantize import rounded
from export.emulator import NOT_FITTED, emulator
from export.fitting import calibrate, fit
from export.parity import Oracle, check_parity, require_parity
from export.public import run
from tests.export.conftest import Exported, Exports, public_for


def inputs(generator: torch.Generator, tokens: int, width: int) -> Tensor:
    """Activations (tokens, width) as models have them: a few directions have most of what there is."""
    few = torch.randn(tokens, 4, generator=generator) @ torch.randn(4, width, generator=generator)
    return (3 * few + 0.3 * torch.randn(tokens, width, generator=generator)).double()


@given(st.integers(1, 40), st.integers(1, 100), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_found_is_on_a_grid(out: int, width: int, along: bool, seed: int) -> None:  # noqa: FBT001 - drawn
    """Whatever the shape, and where blocks lie: it is held to the bit. Zeros stay zeros."""
    generator = torch.Generator().manual_seed(seed)
    matrix, values = torch.randn(out, width, generator=generator), inputs(generator, 30, width)
    for one in (matrix, torch.zeros_like(matrix)):
        found = on_grid(one, values.T @ values, along_inputs=along)
        stored = (found if along else found.T).contiguous().numpy()
        np.testing.assert_array_equal(rounded(stored, 4), stored)
    assert not found.any()


def test_what_no_scale_can_hold_is_no_number() -> None:
    """So that whatever writes it says so, instead of weights that were cut off."""
    found = on_grid(torch.tensor([[1.0] * 32, [1e6] * 32]), torch.eye(32).double())
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.parametrize("along", [True, False])
def test_products_are_nearer_than_the_nearest_weights_would_be(along: bool) -> None:  # noqa: FBT001
    """On the data, and on other data like it, by far more than chance would have it."""
    generator = torch.Generator().manual_seed(0)
    matrix, values = torch.randn(96, 128, generator=generator), inputs(generator, 600, 128)
    given_, unseen = values[:300], values[300:]
    found = on_grid(matrix, given_.T @ given_, along_inputs=along)
    stored = (matrix if along else matrix.T).contiguous().numpy()
    nearest = torch.from_numpy(rounded(stored, 4))
    nearest = nearest if along else nearest.T
    for data in (given_, unseen):
        off, before = (float((data @ (w - matrix).double().T).norm()) for w in (found, nearest))
        assert off < 0.5 * before


def test_every_familys_states_are_nearer(exported: Exported) -> None:
    """The rounded model's last states are nearer to the model's on public data; parity is proved from the files alone,
    and all that has no 4 bits is the plain level's.
    """
    adapted = exported.program.adapted
    plain = exported.manifests["int4"].level
    level, public = dataclasses.replace(plain, refit=Refit(12)), public_for(adapted.foundation, 12)
    assert fit(adapted, None, level, public, 0, print) == NOT_FITTED
    fitted = calibrate(adapted, level, NOT_FITTED, public).fitted(level)
    models = [emulator(adapted, one, own)[0].get_base_model() for one, own in ((plain, NOT_FITTED), (level, fitted))]
    whole = emulator(adapted, dataclasses.replace(level, bits=32))[0].get_base_model()
    wanted, *found = (torch.cat([state[mask] for mask, state in run(model, public)]) for model in (whole, *models))
    before, off = (float((state - wanted).norm()) for state in found)
    assert off < before
    manifest = ArtifactWriter(exported.program, exported.store).write(level, 16, fitted)
    files = exported.manifests["int4"].files
    assert {name for name, blob in manifest.files.items() if blob != files[name]} <= {
        name for name in files if name.endswith(".safetensors")
    } - {"adapter.safetensors"}
    require_parity(check_parity(Oracle(adapted), exported.store, manifest))


def test_mixed_levels_share_what_is_in_4_bits(exports: Exports, tmp_path: pathlib.Path) -> None:
    """Blocks that two levels hold in 4 bits are one file to both, and to the level that is in 4 bits throughout."""
    exported = exports["llama"]
    adapted, program = exported.program.adapted, exported.program
    level = LevelSpec("mixed", (0, 1, 2, 3), (0, 1, 2, 3), 8, (8, 4, 4, 8), refit=Refit(9))
    by = calibrate(adapted, level, NOT_FITTED, public_for(adapted.foundation, 9))
    with staged(tmp_path / "artifact") as store:
        levels = (level, dataclasses.replace(level, bits=4, layer_bits=()))
        mixed, plain = (ArtifactWriter(program, store).write(one, 16, by.fitted(one)).files for one in levels)
    other = exported.manifests["int8"].files
    for layer, files in ((0, other), (1, plain), (2, plain), (3, other)):
        assert mixed[f"block.{layer}.safetensors"] == files[f"block.{layer}.safetensors"]
    assert mixed["embed.safetensors"] == other["embed.safetensors"] != plain["embed.safetensors"]


@pytest.mark.parametrize("family", ["llama", "vit"])
def test_prompts_do_not_count(exports: Exports, family: str) -> None:
    """Every product in a block sees tokens that are no row's: what is found is from those of rows alone."""
    adapted = exports.of(family, AdapterRequest("prompt", length=3)).program.adapted
    layers = tuple(range(adapted.foundation.spec.layers))
    level = LevelSpec("int4", layers, layers, 4, refit=Refit(20))
    found = calibrate(adapted, level, NOT_FITTED, public_for(adapted.foundation, 20)).fitted(level)
    assert {f"block.{layer}" for layer in layers} <= found.keys()
    assert all(np.isfinite(array).all() for tensors in found.values() for array in tensors.values())
