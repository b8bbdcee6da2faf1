"""Integer products on the way back: how far off, and what stays exact."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_sdk.wire.blobs import BlobStore
from export.capture import IR_VERSION, OPSET
from export.compress.integers import MultiplyBackInIntegers
from export.compress.quantize import QuantizeInputs, quantize_tensors, rounded
from export.lowering import Canonicalize, lower, serialize
from export.parity import Oracle, check_parity
from tests.export.conftest import Exported
from tests.export.test_graphs import run, value


@pytest.mark.parametrize("swapped", [False, True])
def test_a_token_is_off_by_a_step_of_its_own(*, swapped: bool) -> None:
    """Rows of any magnitude are within a step of their own largest entry times the weights they meet, zeros exact.

    A product with the same matrix that does not depend on `dy` stays exact.
    """
    generator = np.random.default_rng(0)
    magnitude = np.array([1e-12, 1e-6, 1, 1e4, 0], np.float32)[:, None]
    dy = (generator.normal(size=(3, 5, 48)) * magnitude).astype("f")
    w = generator.normal(size=(40, 48) if swapped else (48, 40)).astype("f")
    given = [value("x", [3, 5, 48]), value("dy", [3, 5, 48]), value("w", list(w.shape))]
    nodes = [ir.node("Transpose", [given[2]], {"perm": [1, 0]})] if swapped else []
    matrix = nodes[0].outputs[0] if swapped else given[2]
    outputs = [value("y", [3, 5, 40]), value("dx", [3, 5, 40])]
    nodes += [ir.node("MatMul", [a, matrix], outputs=[b]) for a, b in zip(given[:2], outputs, strict=True)]
    model = ir.Model(ir.Graph(given, outputs, nodes=nodes, opset_imports={"": OPSET}), ir_version=IR_VERSION)
    ir.passes.Sequential(QuantizeInputs(["w"], 8), MultiplyBackInIntegers(), Canonicalize())(lower(model))
    found = run(model, {"x": dy, "dy": dy, **quantize_tensors({"w": w}, 8)})
    kept = rounded(w, 8).T if swapped else rounded(w, 8)
    np.testing.assert_allclose(found["y"], dy @ kept, rtol=1e-4, atol=0)
    scale = np.ones(48, np.float32) if swapped else np.abs(w).max(axis=1) / 127
    step = np.abs(dy * scale).max(axis=2, keepdims=True) * 2 / 255
    assert (np.abs(found["dx"] - dy @ kept) <= step * np.abs(kept / scale[:, None]).sum(axis=0)).all()
    error = np.linalg.norm(found["dx"] - found["y"], axis=2) / np.maximum(np.linalg.norm(found["y"], axis=2), 1e-37)
    assert error.max() < 0.03
    assert error[:, :4].min() > 1e-4  # else nothing was rounded


def test_gradients_are_near_torchs(exported: Exported, tmp_path: pathlib.Path) -> None:
    """With every backward graph of an artifact rewritten, the loss is as exact as before and gradients are close."""
    manifest = exported.manifests["int8"]
    store = BlobStore(shutil.copytree(exported.folder, tmp_path / "artifact"))
    files = dict(manifest.files)
    for structure in manifest.structures.values():
        if structure.backward:
            graph = ir.from_proto(onnx.load_from_string(store.read(files[structure.backward])))
            before = [node.op_type for node in graph.graph].count("DequantizeLinear")
            ir.passes.Sequential(MultiplyBackInIntegers(), Canonicalize())(graph)
            assert [node.op_type for node in graph.graph].count("DynamicQuantizeMatMul") == before
            files[structure.backward] = store.put(serialize(graph))
    parity = check_parity(Oracle(exported.program.adapted), store, dataclasses.replace(manifest, files=files))
    assert parity.loss <= 1e-6
    assert 1e-4 < parity.worst < 0.1
