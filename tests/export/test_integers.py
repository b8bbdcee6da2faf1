"""Integer products on the way back: how far off, and what stays exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_sdk.wire.manifest import Keeping, Structure
from export.capture import IR_VERSION, OPSET
from export.compress.integers import MultiplyBackInIntegers
from export.compress.quantize import QuantizeInputs, quantize_tensors, rounded
from export.errors import ParityError
from export.lowering import Canonicalize, lower
from export.parity import INTEGERS_BOUND, Oracle, Parity, check_parity, integers_error, require_parity
from export.reference import ReferenceWalk
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


@pytest.mark.parametrize("level", ["int8", "int8-2layers-last1"])
def test_gradients_are_as_far_off_as_is_said(exported: Exported, level: str) -> None:
    """With another adapter and another batch than parity's, every way to keep activations: the loss is exact, and the
    gradient's error is near the stated one.
    """
    manifest = exported.manifests[level]
    stated = check_parity(Oracle(exported.program.adapted), exported.store, manifest).in_integers
    assert 1e-4 < stated < 0.1
    assert integers_error(Oracle(exported.program.adapted, seed=1), exported.store, manifest) < 4 * stated
    oracle, walk = Oracle(exported.program.adapted, seed=1), ReferenceWalk(exported.store, manifest)
    for kept_bits in (0, 32, 16):
        exact, found = (
            walk.run(oracle.adapter, oracle.batch, kept_bits, integers=integers) for integers in (False, True)
        )
        assert found.loss == exact.loss
        off, whole = 0.0, 0.0
        for name in (name for name in exact.gradients if not name.startswith("head/")):
            off += float(np.square(found.gradients[name] - exact.gradients[name]).sum())
            whole += float(np.square(exact.gradients[name]).sum())
        assert 0 < off < (4 * stated) ** 2 * whole


def test_graphs_are_there_where_they_differ(exported: Exported) -> None:
    """Each backward graph of a level in 8 bits that reads a matrix has its like in integers, with no more exact product
    of what flows back; other levels have none, and nothing to be off by.
    """
    for manifest in exported.manifests.values():
        structures = manifest.structures.values()
        pairs: list[Structure | Keeping] = [*structures, *(keeping for s in structures for keeping in s.keepings)]
        for pair in pairs:
            nodes = operators(exported, manifest.files[pair.backward].sha256) if pair.backward else []
            assert bool(pair.backward_integers) == (manifest.level.bits == 8 and "DequantizeLinear" in nodes)
            if pair.backward_integers:
                found = operators(exported, manifest.files[pair.backward_integers].sha256)
                assert found.count("DynamicQuantizeMatMul") >= 4
                assert "DynamicQuantizeMatMul" not in nodes
        if manifest.level.bits != 8:
            assert integers_error(Oracle(exported.program.adapted), exported.store, manifest) == 0


def test_gradients_that_are_no_gradients_are_not_stated() -> None:
    """An error in integers that only a wrong formula makes ends the export; so does NaN."""
    for error in (2 * INTEGERS_BOUND, float("nan")):
        with pytest.raises(ParityError, match="the gradient in integers is off by"):
            require_parity(Parity("int8", 0.0, {"a": 0.0}, in_integers=error))


def operators(exported: Exported, sha256: str) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in onnx.load(exported.store.path(sha256)).graph.node]
