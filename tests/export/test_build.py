"""Several levels in one build, at one rank and at several."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import Manifest, TaskType
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest
from export.build import BuildRequest, build
from export.errors import ExportError
from export.levels import LevelRequest
from export.progress import Progress, silent


def request_for(model: pathlib.Path, out: pathlib.Path, **ranks: int | None) -> BuildRequest:
    """A request for levels of these names and ranks, of an adapter of rank 3."""
    levels = tuple(LevelRequest(name, 32, None, None, rank) for name, rank in ranks.items())
    adapter = AdapterRequest("lora", 3, 6.0, ("q_proj", "up_proj"))
    return BuildRequest(model, TaskType.CAUSAL_LM, out, adapter, levels, labels=(), tokens=16, parity=True, seed=0)


def initial(out: pathlib.Path, manifest: Manifest) -> dict[str, Array]:
    """The level's starting values."""
    return read_tensors(BlobStore(out).path(manifest.files[manifest.adapter.initial].sha256))


def test_a_level_of_a_lower_rank(tiny_llama_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It has graphs of its own, proved by parity, the same scale, the first rows of A, and shares frozen tensors."""
    out, said = tmp_path / "artifact", list[Progress]()
    narrow, whole = (one.manifest for one in build(request_for(tiny_llama_folder, out, n=1, w=None), said.append))
    assert (narrow.adapter.rank, narrow.adapter.alpha) == (1, 2.0)
    assert (whole.adapter.rank, whole.adapter.alpha) == (3, 6.0)
    values = initial(out, whole)
    for name, array in initial(out, narrow).items():
        assert np.array_equal(array, values[name][:1] if name.endswith("lora_A") else values[name][:, :1])
        assert narrow.adapter_shapes()[name] == array.shape
    assert all(narrow.files[segment.tensors] == whole.files[segment.tensors] for segment in whole.walk)
    assert narrow.files["block.forward.onnx"] != whole.files["block.forward.onnx"]
    assert [one.done for one in said] == sorted(one.done for one in said)
    assert said[-1] == Progress("costs", "n", 9, 10)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"a": None, "b": 4}, "level b cannot have rank 4: give 1 to 3, the adapter's"),
        ({"a": None, "b": 0}, "level b cannot have rank 0"),
        ({"a": 1, "b": 2}, "no level has the adapter's own rank, 3"),
    ],
)
def test_impossible_ranks_are_refused(
    tiny_llama_folder: pathlib.Path, tmp_path: pathlib.Path, ranks: dict[str, int | None], message: str
) -> None:
    """One line, before anything is captured or written."""
    with pytest.raises(ExportError, match=message):
        build(request_for(tiny_llama_folder, tmp_path / "artifact", **ranks), silent)
    assert not (tmp_path / "artifact").exists()
