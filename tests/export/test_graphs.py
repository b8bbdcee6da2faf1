"""Capture and lowering: what is in the graphs, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from edge_sdk.wire.tensors import read_tensors
from export.capture import IR_VERSION, OPSET, Sizes, capture
from export.compress.quantize import QuantizeInputs, quantize_tensors, rounded
from export.lowering import Canonicalize, FoldTransposes, FreeRows, lower, serialize
from tests.export.conftest import Exported


def graphs(exported: Exported, level: str) -> dict[str, onnx.ModelProto]:
    """All graphs of a level by file name."""
    files = exported.manifests[level].files
    return {
        name: onnx.load_from_string(exported.store.read(blob)) for name, blob in files.items() if name.endswith(".onnx")
    }


def run(model: ir.Model, given: dict[str, Any]) -> dict[str, Any]:
    """Run a graph with onnxruntime."""
    session = onnxruntime.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("level", ["fp32", "fp16", "int8", "int4"])
def test_old_runtimes_can_load_the_graphs(exported: Exported, level: str) -> None:
    """IR version and opsets are those of onnxruntime 1.19.2, the last one with wheels for Python 3.8 and 3.9 boards."""
    for graph in graphs(exported, level).values():
        assert graph.ir_version == IR_VERSION == 10
        assert {o.domain: o.version for o in graph.opset_import}.items() <= {"": OPSET, "com.microsoft": 1}.items()


@pytest.mark.parametrize("level", ["fp32", "fp16", "int8", "int4"])
def test_weights_are_neither_transposed_nor_scattered(exported: Exported, level: str) -> None:
    """No Transpose of an input (it would be a copy of a weight at each step), no scatter in any gradient.

    Integer products have no transposed form: there a copy of a quarter of the bytes is made (ADR 0009).
    """
    for name, graph in graphs(exported, level).items():
        inputs = {value.name for value in graph.graph.input}
        kinds = {node.op_type for node in graph.graph.node}
        transposed = [n for n in graph.graph.node if n.op_type == "Transpose" and n.input[0] in inputs - {"x", "dy"}]
        assert not transposed or "integers" in name, name
        assert not {kind for kind in kinds if "Scatter" in kind or kind == "Identity"}, name


def test_inputs_and_outputs_are_the_manifests(exported: Exported) -> None:
    """Graph inputs are what flows in, context, frozen and trained tensors by name, in this order; outputs as agreed."""
    for level, manifest in exported.manifests.items():
        found = graphs(exported, level)
        for name, structure in manifest.structures.items():
            tensors = [*structure.context, *structure.frozen, *structure.trained]
            begin = "ids" if manifest.model.image is None else "pixels"
            forward, first = found[structure.forward].graph, begin if name == "embed" else "x"
            assert [v.name for v in forward.input] == [first, *tensors]
            assert [v.name for v in forward.output] == ["y"]
            if structure.backward:
                backward = found[structure.backward].graph
                assert [v.name for v in backward.input] == ["x", "dy", *tensors]
                assert [v.name for v in backward.output] == ["dx", *(f"d.{n}" for n in structure.trained)]
            for keeping in structure.keepings:
                there, back = found[keeping.forward].graph, found[keeping.backward].graph
                assert [v.name for v in there.input] == ["x", *tensors]
                assert [v.name for v in there.output] == ["y", *keeping.kept]
                assert [v.name for v in back.input] == ["x", "dy", *keeping.kept, *tensors]
                assert [v.name for v in back.output] == ["dx", *(f"d.{n}" for n in structure.trained)]


def test_a_vocabularys_loss_is_a_softmax_cut_into_slices(llama: Exported) -> None:
    """Slices of the vocabulary give the loss and the gradient of the whole: logsums add up, products are shares."""
    manifest = llama.manifests["fp32"]
    loss = manifest.vocabulary_loss
    assert loss is not None
    matrix = read_tensors(llama.store.path(manifest.files[loss.tensors].sha256))["matrix"]
    random = np.random.default_rng(0)
    z, labels = random.normal(0, 3, (5, matrix.shape[1])).astype("f"), random.integers(0, len(matrix), 5)

    def ran(name: str, given: dict[str, Any]) -> dict[str, Any]:
        return run(ir.from_proto(onnx.load_from_string(llama.store.read(manifest.files[name]))), given)

    found = {k: ran(loss.project, {"z": z, "matrix": matrix[k : k + 70]}) for k in range(0, len(matrix), 70)}
    logsum = np.logaddexp.reduce([one["logsum"] for one in found.values()])
    wanted = ran(loss.lookup, {"ids": labels, "matrix": matrix})["z"]
    np.testing.assert_array_equal(wanted, matrix[labels])
    dz = -wanted
    for k, one in found.items():
        product = ran(loss.unproject, {"softmax": one["softmax"], "matrix": matrix[k : k + 70]})["dz"]
        dz = dz + np.exp(one["logsum"] - logsum) * product
    leaf = torch.tensor(z, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(leaf @ torch.tensor(matrix).T, torch.tensor(labels), reduction="none")
    expected.sum().backward()
    np.testing.assert_allclose(logsum[:, 0] - (z * wanted).sum(axis=1), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert leaf.grad is not None
    np.testing.assert_allclose(dz, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["fp32", "fp16", "int8", "int4"])
def test_embedding_takes_any_rows(exported_text: Exported, level: str) -> None:
    """Given only the rows that occur, and ids that count within them, the embedding gives the same bits."""
    manifest = exported_text.manifests[level]
    graph = exported_text.store.read(manifest.files[manifest.structures["embed"].forward])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tensors = read_tensors(exported_text.store.path(manifest.files["embed.safetensors"].sha256))
    ids = np.random.default_rng(0).integers(0, manifest.model.vocabulary, (3, 9))
    rows, within = np.unique(ids, return_inverse=True)
    matrix = {name: array for name, array in tensors.items() if name.startswith("matrix")}
    assert set(matrix) == ({"matrix"} if level.startswith("fp") else {"matrix", "matrix.scale"})
    few = {**tensors, **{name: array[rows] for name, array in matrix.items()}}
    (wanted,) = session.run(["y"], {"ids": ids, **tensors})
    (found,) = session.run(["y"], {"ids": within.reshape(ids.shape), **few})
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("kind", "second", "message"),
    [
        ("Gather", "position", "used for more than a look-up: Gather"),
        ("MatMul", "other", "used for more than a look-up: MatMul"),
        ("Shape", "matrix.position", "matrix.position would be taken for the embedding matrix"),
    ],
)
def test_embeddings_that_need_all_rows_are_refused(kind: str, second: str, message: str) -> None:
    """Where ids mean more than a row, or the matrix more than its rows, renumbered ids would be silently wrong."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    matrix, other = value("matrix", [6, 6]), value(second, [6, 6])
    taken = {"Gather": [other, ids], "MatMul": [other, matrix], "Shape": [ids]}[kind]
    nodes = [ir.node(kind, taken), ir.node("Gather", [matrix, ids], {"axis": 0})]
    with pytest.raises(ir.passes.PreconditionError, match=message):
        FreeRows()(product(nodes, [ids, matrix, other]))


def test_graphs_tell_nothing_of_the_machine(exported: Exported) -> None:
    """No path, no stack trace, no doc string is left in a graph."""
    for level in exported.manifests:
        for graph in graphs(exported, level).values():
            assert not any("/" in text for node in graph.graph.node for text in (node.name, *node.input, *node.output))
            assert not graph.doc_string
            assert not graph.metadata_props
            assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)


def test_capture_keeps_unused_inputs_and_any_sizes() -> None:
    """A function of two batches: the unused input stays, other sizes than the examples' work."""
    sizes = Sizes.unlike({4, 6})
    examples = {
        "x": torch.zeros(sizes.batch, sizes.tokens, 6),
        "unused": torch.zeros(sizes.batch),
        "w": torch.ones(4, 6),
    }
    model = lower(capture(lambda t: {"y": t["x"] @ t["w"].T, "n": t["x"].sum()}, examples, sizes))
    assert [value.name for value in model.graph.inputs] == ["x", "unused", "w"]
    x, w = np.random.default_rng(0).normal(size=(2, 9, 6)).astype("f"), np.ones((4, 6), "f")
    found = run(model, {"x": x, "unused": np.zeros(2, "f"), "w": w})
    np.testing.assert_allclose(found["y"], x @ w.T, rtol=1e-5)
    np.testing.assert_allclose(found["n"], x.sum(), rtol=1e-4)


def test_one_example_for_two_inputs_is_refused() -> None:
    """Tracing cannot tell two inputs apart that are one tensor: silently wrong gradients, if it were let through."""
    x = torch.zeros(5, 7)
    with pytest.raises(ValueError, match="same tensor"):
        capture(lambda t: {"y": t["a"] * t["b"]}, {"a": x, "b": x}, Sizes(5, 7))


def test_sizes_are_never_a_dimension_of_the_model() -> None:
    """Neither a dimension nor a divisor of one: no number of heads can be mistaken for the batch."""
    assert Sizes.unlike({576, 1536, 8, 49152}) == Sizes(5, 7)
    assert Sizes.unlike({35, 44}) == Sizes(13, 17)


def product(nodes: list[ir.Node], inputs: list[ir.Value]) -> ir.Model:
    """A graph that ends in the last node."""
    result = nodes[-1].outputs[0]
    result.name, result.type = "y", ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph(inputs, [result], nodes=nodes, opset_imports={"": OPSET}), ir_version=IR_VERSION)


def value(name: str, shape: list[int | str]) -> ir.Value:
    """A float32 graph input."""
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


@pytest.mark.parametrize("swaps", [0, 1, 2, 3])
def test_transposes_fold_into_products(swaps: int) -> None:
    """MatMul(a, b transposed n times) is one product without a copy, for any n, and computes the same."""
    a, b = value("a", [3, 4]), value("b", [5, 4] if swaps % 2 else [4, 5])
    nodes: list[ir.Node] = []
    last = b
    for _ in range(swaps):
        nodes.append(ir.node("Transpose", [last], {"perm": [1, 0]}))
        last = nodes[-1].outputs[0]
    model = lower(product([*nodes, ir.node("MatMul", [a, last])], [a, b]))
    assert [node.op_type for node in model.graph] == ["FusedMatMul" if swaps % 2 else "MatMul"]
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(3, 4)).astype("f"), generator.normal(size=(5, 4)).astype("f")
    given = {"a": x, "b": w if swaps % 2 else w.T.copy()}
    np.testing.assert_allclose(run(model, given)["y"], x @ w.T, rtol=1e-5)


@pytest.mark.parametrize("already", [0, 1])
def test_transposes_fold_into_gemm(already: int) -> None:
    """A Gemm takes the swap as its attribute, and a swap of what it already swaps undoes it."""
    a, b, bias = value("a", [3, 4]), value("b", [4, 5] if already else [5, 4]), value("bias", [5])
    swap = ir.node("Transpose", [b], {"perm": [1, 0]})
    model = lower(product([swap, ir.node("Gemm", [a, swap.outputs[0], bias], {"transB": already})], [a, b, bias]))
    assert [(node.op_type, node.attributes["transB"].as_int()) for node in model.graph] == [("Gemm", 1 - already)]
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(3, 4)).astype("f"), generator.normal(size=(4, 5)).astype("f")
    given = {"a": x, "b": w if already else w.T.copy(), "bias": np.ones(5, "f")}
    np.testing.assert_allclose(run(model, given)["y"], x @ w + 1, rtol=1e-5)


def test_other_permutations_are_left_alone() -> None:
    """A Transpose that moves more than the last two dimensions is no swap."""
    a, b = value("a", [2, 3, 4]), value("b", [4, 2, 5])
    swap = ir.node("Transpose", [b], {"perm": [1, 0, 2]})
    model = product([swap, ir.node("MatMul", [a, swap.outputs[0]])], [a, b])
    assert not FoldTransposes()(model).modified
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]


def test_a_product_that_is_only_used_swapped_is_made_so() -> None:
    """(a b)^T is b^T a^T: no Transpose is left, whatever was swapped before."""
    a, b = value("a", [3, 4]), value("b", [5, 4])
    swap = ir.node("Transpose", [b], {"perm": [1, 0]})
    found = ir.node("MatMul", [a, swap.outputs[0]])
    found.outputs[0].shape = ir.Shape([3, 5])
    back = ir.node("Transpose", [found.outputs[0]], {"perm": [1, 0]})
    back.outputs[0].shape = ir.Shape([5, 3])
    model = lower(product([swap, found, back, ir.node("Abs", [back.outputs[0]])], [a, b]))
    assert [node.op_type for node in model.graph] == ["FusedMatMul", "Abs"]
    x, w = np.random.default_rng(0).normal(size=(3, 4)).astype("f"), np.ones((5, 4), "f")
    np.testing.assert_allclose(run(model, {"a": x, "b": w})["y"], abs(w @ x.T), rtol=1e-5)


def parsed(body: str) -> ir.Model:
    """A graph with the shapes of its values, as torch's exporter gives them."""
    text = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]> small {body}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (
            """(float[2, 3, 4] a, float[4, 5] b) => (float[2, 3, 5] y) { rows = Constant <value_ints = [6, 4]> ()
            back = Constant <value_ints = [2, 3, 5]> () two = Constant <value_float = 2.0> ()
            flat = Reshape (a, rows) p = MatMul (flat, b) q = Reshape (p, back) r = Mul (q, two) y = Abs (r) }""",
            ["FusedMatMul", "Abs"],
        ),
        (
            """(float[2, 3, 4, 5] a, float[2, 3, 5, 6] b) => (float[2, 3, 4, 6] y) {
            one = Constant <value_ints = [6, 4, 5]> () two = Constant <value_ints = [6, 5, 6]> ()
            back = Constant <value_ints = [2, 3, 4, 6]> ()
            c = Reshape (a, one) d = Reshape (b, two) p = MatMul (c, d) q = Reshape (p, back) y = Abs (q) }""",
            ["MatMul", "Abs"],
        ),
        (
            """(float[2, 3, 4] a, float[4, 5] b) => (float[5, 5] y) { rows = Constant <value_ints = [6, 4]> ()
            back = Constant <value_ints = [2, 3, 5]> () flat = Reshape (a, rows) p = MatMul (flat, b)
            t = Transpose <perm = [1, 0]> (p) q = MatMul (t, p) y = Abs (q) }""",
            ["MatMul", "Reshape", "FusedMatMul", "Abs"],
        ),
        (
            """(float[2, 6, 5] a, float[3, 4, 5] b) => (float[3, 4, 4] y) { one = Constant <value_ints = [3, 4, 5]> ()
            c = Reshape (a, one) t = Transpose <perm = [0, 2, 1]> (b) p = MatMul (c, t) y = Abs (p) }""",
            ["Reshape", "FusedMatMul", "Abs"],
        ),
    ],
    ids=["rows", "batches", "rows that are wanted", "a Reshape that merges nothing"],
)
def test_products_are_made_in_the_shape_that_is_there(body: str, kinds: list[str]) -> None:
    """What only merged dimensions for a product and split them again goes; the numbers stay."""
    model = parsed(body)
    random = np.random.default_rng(0)
    given = {
        v.name or "": random.normal(size=[int(str(n)) for n in v.shape or ()]).astype("f") for v in model.graph.inputs
    }
    wanted = run(model, given)["y"]
    lower(model)
    assert [node.op_type for node in model.graph] == kinds
    np.testing.assert_allclose(run(model, given)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_a_factor_that_is_wanted_stays() -> None:
    """A multiplication goes into products only if nothing else uses what it gives."""
    a, b = value("a", [3, 4]), value("b", [4, 3])
    two = ir.node("Constant", [], {"value_float": 2.0})
    twice = ir.node("Mul", [a, two.outputs[0]])
    found = ir.node("MatMul", [twice.outputs[0], b])
    nodes = [two, twice, found, ir.node("Concat", [twice.outputs[0], found.outputs[0]], {"axis": 1})]
    assert [node.op_type for node in lower(product(nodes, [a, b])).graph] == ["Mul", "MatMul", "Concat"]


def test_blocks_have_no_formula_that_could_be_leaner(exported: Exported) -> None:
    """Nothing is left of norms in pieces, factors beside products, copies of keys, padded gradients."""
    for name, graph in graphs(exported, "fp32").items():
        if name.startswith("block"):
            kinds = {node.op_type for node in graph.graph.node}
            assert not kinds & {"Expand", "Pad", "ReduceMean", "Reciprocal", "Squeeze"}, name


def test_quantizing_refuses_what_is_no_matrix() -> None:
    """The pass states its contract: a vector among the names is misuse."""
    a, b = value("a", [3, 4]), value("b", [4])
    with pytest.raises(ir.passes.PreconditionError, match="b is no float32 matrix"):
        QuantizeInputs(["b"], 8)(product([ir.node("MatMul", [a, b])], [a, b]))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_matrix_without_a_fixed_width_is_refused(bits: int) -> None:
    """How wide a row is held follows from its width."""
    a, b = value("a", [3, 4]), value("b", [4, "columns"])
    with pytest.raises(ir.passes.PreconditionError, match="b is no float32 matrix"):
        QuantizeInputs(["b"], bits)(product([ir.node("MatMul", [a, b])], [a, b]))


@pytest.mark.parametrize("width", [1, 5, 31, 32, 33, 48, 64, 100])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_quantized_graphs_compute_with_the_rounded_weights(bits: int, width: int) -> None:
    """A look-up gives the rounded rows to the bit, whatever the width; a product of them is a product with those."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n", "m"]))
    matrix, looked_up = value("matrix", ["rows", width]), value("looked_up", ["n", "m", width])
    rows = ir.node("Gather", [matrix, ids], {"axis": 0}, outputs=[looked_up])
    swap = ir.node("Transpose", [matrix], {"perm": [1, 0]})
    model = product([rows, swap, ir.node("MatMul", [looked_up, swap.outputs[0]])], [ids, matrix])
    model.graph.outputs.append(looked_up)
    ir.passes.Sequential(QuantizeInputs(["matrix"], bits), Canonicalize())(lower(model))
    weights = np.random.default_rng(width).normal(size=(6, width)).astype("f")
    parts, wanted = quantize_tensors({"matrix": weights}, bits), rounded(weights, bits)
    assert [v.name for v in model.graph.inputs] == ["ids", *parts]
    picked = np.array([[3], [1]])
    found = run(model, {"ids": picked, **parts})
    np.testing.assert_array_equal(found["looked_up"], wanted[picked])
    np.testing.assert_allclose(found["y"], wanted[picked] @ wanted.T, rtol=1e-5, atol=1e-6)
