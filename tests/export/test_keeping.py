"""What is kept is the least from which no product with a weight is made twice; parity holds the gradients."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edge_sdk.wire.manifest import Keeping, Structure
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest
from export.capture import IR_VERSION, OPSET
from export.keeping import PRECISIONS, keep_products
from export.structures import Captured
from tests.export.conftest import Exported, Exports
from tests.models import WIDTH

PRODUCTS = {"MatMul", "FusedMatMul", "Gemm"}
FFN, RANK = 48, 2
# What a block's way back cannot do without, a token: q, k, v, the feed-forward's, the hidden state between attention
# and feed-forward, and what flows between the two factors of each adapted matrix.
FLOATS = {
    "llama": (WIDTH + 2 * WIDTH // 2) + 2 * FFN + WIDTH + 2 * RANK,
    "gpt2": 3 * WIDTH + FFN + WIDTH + 3 * RANK,
    "opt": 3 * WIDTH + FFN + WIDTH + 2 * RANK,
    "gpt_neox": 3 * WIDTH + FFN + RANK,  # attention and feed-forward stand side by side: there is no state in between
    **dict.fromkeys(("vit", "deit"), 3 * WIDTH + FFN + WIDTH + 2 * RANK),
    "dinov2": 3 * WIDTH + 2 * WIDTH + WIDTH + 2 * RANK,  # its feed-forward is twice as wide as the hidden state
    **dict.fromkeys(("bert", "roberta", "distilbert"), 3 * WIDTH + FFN + 2 * WIDTH + 2 * RANK),
}


def weight_products(model: ir.Model, weights: set[str], since: str = "") -> collections.Counter[str]:
    """How many products have each weight as an operand; with `since`, of those that depend on that input."""
    flowing = {since}
    found: collections.Counter[str] = collections.Counter()
    for node in model.graph:
        names = {value.name or "" for value in node.inputs if value is not None}
        if since and not names & flowing:
            continue
        flowing.update(value.name or "" for value in node.outputs)
        if node.op_type in PRODUCTS:
            found.update(names & weights)
    return found


def blocks(exported: Exported) -> Iterator[Captured]:
    """The structures that keep something."""
    return (captured for captured in exported.program.structures.values() if captured.kept)


def weights_of(captured: Captured) -> set[str]:
    """Its tensors, by input name."""
    return {*captured.frozen, *captured.trained}


@pytest.mark.parametrize("bits", PRECISIONS)
def test_no_product_with_a_weight_is_made_twice(exported: Exported, bits: int) -> None:
    """There, those of the forward pass; back, only those that `dy` flows through: together the joint graph's."""
    assert list(blocks(exported))
    for captured in blocks(exported):
        assert captured.backward is not None
        kept, weights = captured.kept[bits], weights_of(captured)
        there, back = weight_products(captured.forward, weights), weight_products(captured.backward, weights, "dy")
        assert there
        assert back
        assert weight_products(kept.forward, weights) == there
        assert weight_products(kept.backward, weights) == back
        assert weight_products(captured.backward, weights).total() > back.total()  # without keeping some are


def test_as_many_numbers_are_kept_as_the_formula_says(exported: Exported) -> None:
    """Each family's block keeps what can be counted by hand, in either precision."""
    (captured,) = blocks(exported)
    family = exported.program.adapted.foundation.spec.family
    assert {bits: kept.floats for bits, kept in captured.kept.items()} == dict.fromkeys(PRECISIONS, FLOATS[family])


def keepings(exported: Exported, level: str) -> Iterator[tuple[Structure, Keeping]]:
    """Every pair that keeps, in a level."""
    for structure in exported.manifests[level].structures.values():
        for keeping in structure.keepings:
            yield structure, keeping


@pytest.mark.parametrize("level", ["fp32", "int8", "int4"])
def test_what_is_kept_is_as_large_as_the_manifest_says(exported: Exported, level: str) -> None:
    """Run on rows of two lengths, the kept arrays have `floats` numbers a token, of so many bits, and no scores."""
    assert all(keeping.row_floats == 0 for _, keeping in keepings(exported, level))
    _require_as_large(exported, level)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_is_kept_of_prompts_is_counted_by_rows(exports: Exports, family: str) -> None:
    """Their numbers are as many in a long row as in a short one: as many as those of three tokens."""
    prompted = exports.of(family, AdapterRequest("prompt", length=3))
    found = [keeping for _, keeping in keepings(prompted, "int8")]
    assert found
    assert all(keeping.row_floats == 3 * keeping.floats for keeping in found)
    _require_as_large(prompted, "int8")


def _require_as_large(exported: Exported, level: str) -> None:
    manifest, random = exported.manifests[level], np.random.default_rng(0)
    for structure, keeping in keepings(exported, level):
        session = onnxruntime.InferenceSession(
            exported.store.read(manifest.files[keeping.forward]), providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        assert names == ["y", *keeping.kept]
        for rows, tokens in ((1, 9), (3, 16)):
            given = {**example(exported, structure, level, rows, tokens), "x": hidden(random, rows, tokens)}
            found = dict(zip(names, session.run(names, given), strict=True))
            kept = rows * (tokens * keeping.floats + keeping.row_floats)
            assert sum(found[name].size for name in keeping.kept) == kept
            assert {found[name].dtype.itemsize * 8 for name in keeping.kept} == {keeping.bits}


def hidden(random: np.random.Generator, rows: int, tokens: int) -> Array:
    """A hidden state."""
    return random.normal(size=(rows, tokens, WIDTH)).astype(np.float32)


def example(exported: Exported, structure: Structure, level: str, rows: int, tokens: int) -> dict[str, Array]:
    """The block's context and tensors, by input name."""
    manifest = exported.manifests[level]
    wanted, found = list(structure.context), []
    if wanted:
        graph = exported.store.read(manifest.files[manifest.context])
        context = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        found = context.run(wanted, {"attention_mask": np.ones((rows, tokens), np.int64)})
    segment = next(one for one in manifest.walk if manifest.structures[one.structure] is structure)
    tensors = read_tensors(exported.store.path(manifest.files[segment.tensors].sha256))
    adapter = exported.initial_adapter(level)
    return {
        **dict(zip(wanted, found, strict=True)),
        **{name: tensors[name] for name in structure.frozen},
        **{name: adapter[f"{segment.name}/{name}"] for name in structure.trained},
    }


def test_what_makes_no_product_keeps_nothing(exported: Exported) -> None:
    """A norm is cheap to compute again and an embedding has no way back: neither has graphs that keep."""
    for structure, captured in exported.program.structures.items():
        assert bool(captured.kept) == structure.startswith("block")
    for structure, spec in exported.manifests["int8"].structures.items():
        assert {keeping.bits for keeping in spec.keepings} == (
            set(PRECISIONS) if structure.startswith("block") else set()
        )


def joint(body: str) -> ir.Model:
    """A small joint graph: `w` (4, 8) is its weight."""
    text = f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    joint (float[batch, tokens, 4] x, float[batch, tokens, 8] dy, float[4, 8] w)
        => (float[batch, tokens, 8] y, float[batch, tokens, 8] dx) {{ {body} }}"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))


@pytest.mark.parametrize(
    ("body", "floats"),
    [
        ("y = MatMul (x, w) z = Relu (y) dx = Mul (dy, z)", 8),
        ("y = MatMul (x, w) z = ReduceMax <keepdims = 1> (y, last) dx = Mul (dy, z)", 1),
        ("y = MatMul (x, w) z = ReduceMax <keepdims = 1> (y, last) e = Exp (y) f = Mul (dy, z) dx = Mul (f, e)", 8),
        ("y = MatMul (x, w) z = Relu (y) n = ReduceMax <keepdims = 1> (x, last) dx = Mul (dy, n)", 0),
        ("y = MatMul (x, w) zero = Constant <value_float = 0.0> () b = Greater (y, zero) dx = Where (b, dy, zero)", 8),
    ],
    ids=[
        "one of two alike",
        "the narrow end",
        "the wide one serves both",
        "what is needed makes no product",
        "a number, where a truth would do",
    ],
)
def test_the_cut_is_the_smallest(body: str, floats: int) -> None:
    """Of all that would do, what has the fewest numbers is kept; what needs no product is computed again."""
    kept = keep_products(joint(f"last = Constant <value_ints = [-1]> () {body}"), ["w"], 32)
    assert (kept.floats, len(kept.names)) == (floats, int(floats > 0))
    assert [value.name for value in kept.forward.graph.outputs] == ["y", *kept.names]
    assert [value.name for value in kept.backward.graph.inputs] == ["x", "dy", *kept.names, "w"]
    onnx.checker.check_model(ir.to_proto(kept.forward), full_check=True)
    assert not weight_products(kept.backward, {"w"})
