"""Artifacts: bytes, sharing, and what is left behind when something goes wrong."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tokenizers

from edge_sdk.wire.blobs import blob_of_file
from edge_sdk.wire.tensors import TensorFile, read_tensors
from export.adapters import adapter_arrays
from export.artifact import staged
from export.errors import ExportError
from export.program import adapt
from tests.export.conftest import Exported, export_tiny


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_input_gives_equal_bytes(llama: Exported, tmp_path: pathlib.Path) -> None:
    """Exported again, every file has the same name and the same bytes."""
    again = export_tiny("llama", llama.model, tmp_path / "again")
    assert contents(again.folder) == contents(llama.folder)


def test_the_seed_draws_the_adapter(bert: Exported) -> None:
    """Another seed gives another adapter, the same seed the same; a new classifier is drawn from it, too."""
    foundation, request = bert.program.adapted.foundation, bert.program.adapted.request
    first, same, other = (adapter_arrays(adapt(foundation, request, seed).parameters) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    drawn = [name for name in first if name.endswith("lora_A") or name == "head/classifier.weight"]
    assert not any(np.array_equal(first[name], other[name]) for name in drawn)


def test_every_promise_is_kept(exported: Exported) -> None:
    """Each file that a manifest names is there with its size and SHA-256, and no other."""
    promised = {blob for manifest in exported.manifests.values() for blob in manifest.files.values()}
    assert {blob_of_file(path) for path in (exported.folder / "blobs").iterdir()} == promised
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "blobs",
        *sorted(f"{level}.manifest" for level in exported.manifests),
    ]


def test_levels_share_what_is_equal(exported: Exported) -> None:
    """int8 levels share their tensors and graphs; all levels share adapter and tokenizer."""
    fp32, int8, small = (manifest.files for manifest in exported.manifests.values())
    assert set(small.values()) <= set(int8.values())
    for name in ("adapter.safetensors", "tokenizer.json", "context.onnx"):
        assert fp32[name] == int8[name] == small[name]


def test_tied_embedding_is_stored_once(llama: Exported) -> None:
    """Embedding and vocabulary projection are one file, which holds `matrix` [and its scale] alone."""
    for manifest in llama.manifests.values():
        loss = manifest.vocabulary_loss
        assert loss is not None
        assert loss.tensors == manifest.walk[0].tensors
        with TensorFile(llama.store.path(manifest.files[loss.tensors].sha256)) as file:
            assert set(file) == set(manifest.structures["embed"].frozen)


def test_tensor_files_hold_what_the_graphs_take(exported: Exported) -> None:
    """Each segment's file has its structure's frozen inputs; the adapter's has every trained tensor, with its shape."""
    for manifest in exported.manifests.values():
        for segment in manifest.walk:
            with TensorFile(exported.store.path(manifest.files[segment.tensors].sha256)) as file:
                assert set(file) == set(manifest.structures[segment.structure].frozen)
        adapter = read_tensors(exported.store.path(manifest.files["adapter.safetensors"].sha256))
        assert {n: adapter[n].shape for n in manifest.adapter_shapes()} == manifest.adapter_shapes()
        assert all(array.any() for name, array in adapter.items() if name.endswith("lora_A"))
        assert not any(array.any() for name, array in adapter.items() if name.endswith("lora_B"))


def test_tokenizer_travels_with_the_artifact(exported: Exported) -> None:
    """The tokenizer file of the model folder, byte for byte; its ids are within the vocabulary."""
    manifest = exported.manifests["fp32"]
    data = exported.store.read(manifest.files[manifest.tokenizer])
    ids = tokenizers.Tokenizer.from_buffer(data).encode("What the device knows, zażółć.").ids
    assert len(ids) > 0
    assert max(ids) < manifest.model.vocabulary


def test_failure_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """An error while blobs are written leaves no file and no folder; what was there before stays."""
    out = tmp_path / "deep" / "artifact"

    def fail() -> None:
        with staged(out) as store:
            store.put(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []


def test_folder_that_cannot_be_written_is_one_line(tmp_path: pathlib.Path) -> None:
    """An output path below a file is refused with a line that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot write to .*file"), staged(tmp_path / "file" / "artifact"):
        pass
