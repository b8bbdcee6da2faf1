"""What a codec leaves out comes with the next delta: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.feedback import compress, owner, read_residual, write_residual
from edge_sdk.wire.delta import unpack_array
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array
from tests.edge_sdk.samples import make_manifest, make_task

SHAPES = {"block.0/q.lora_B": (40, 8), "block.1/q.lora_B": (40, 8), "head/bias": (3,)}


def deltas(names: set[str], seed: int) -> dict[str, Array]:
    """Of these tensors, in one direction with noise on it: what is left out too often would add up."""
    random = np.random.default_rng(seed)
    return {name: (1e-3 * random.normal(0.5, 1, SHAPES[name])).astype(np.float32) for name in sorted(names)}


@given(
    st.lists(st.tuples(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1), st.sampled_from(DeltaCodec)), max_size=12)
)
def test_what_came_and_what_is_left_is_all_there_was(rounds: list[tuple[set[str], DeltaCodec]]) -> None:
    """Whichever tensors and codecs: the decoded deltas and the residual add up to the true deltas, up to rounding."""
    true, came = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    residual: dict[str, Array] = {}
    for seed, (names, how) in enumerate(rounds):
        delta = deltas(names, seed)
        encoded, residual = compress(delta, residual, how)
        assert encoded.keys() == delta.keys()
        for name in names:
            true[name] += delta[name]
            came[name] += unpack_array(encoded[name])
    for name, sum_ in true.items():
        assert np.allclose(came[name] + residual.get(name, 0), sum_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("how", DeltaCodec)
def test_what_is_left_out_stays_bounded(how: DeltaCodec) -> None:
    """After a hundred rounds no codec owes more than it did after ten, give or take: the wire keeps up."""
    residual: dict[str, Array] = {}
    sizes = []
    for seed in range(100):
        _, residual = compress(deltas(set(SHAPES), seed), residual, how)
        sizes.append(max(float(np.linalg.norm(array)) for array in residual.values()))
    delta = float(np.linalg.norm(deltas(set(SHAPES), 0)["block.0/q.lora_B"]))
    bound = 64 * delta if how is DeltaCodec.TOP_K else 4 * delta
    assert max(sizes) <= bound


def test_a_residual_is_its_owners_alone(tmp_path: pathlib.Path) -> None:
    """Of another run, model or adapter it is as if there were none; of another level of the model it is the same."""
    task, manifest = make_task(residual="run"), make_manifest()
    ours = owner(task, manifest)
    residual = deltas(set(SHAPES), 0)
    write_residual(tmp_path / "residual", ours, residual)
    found = read_residual(tmp_path / "residual", ours)
    assert found.keys() == residual.keys()
    assert all(np.array_equal(found[name], residual[name]) for name in residual)
    level = dataclasses.replace(manifest, level=dataclasses.replace(manifest.level, name="small", bits=8))
    assert owner(dataclasses.replace(task, round=7), level) == ours
    strangers = (
        owner(make_task(residual="another run"), manifest),
        owner(task, dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, width=99))),
        owner(task, dataclasses.replace(manifest, adapter=dataclasses.replace(manifest.adapter, rank=99))),
    )
    assert all(read_residual(tmp_path / "residual", stranger) == {} for stranger in strangers)
    assert read_residual(tmp_path / "nothing", ours) == {}


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_damaged_residual_is_not_used(tmp_path: pathlib.Path, position: int) -> None:
    """A flipped byte is an error, not another number."""
    path = tmp_path / "residual"
    write_residual(path, "owner", deltas(set(SHAPES), 0))
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(WireError):
        read_residual(path, "owner")
