"""A device loads no graph that does more than compute: each of these is refused from its bytes, before a runtime."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.engine.runtime import Graph
from edge_sdk.errors import ArtifactError
from edge_sdk.wire.errors import DecodeError, TooLargeError
from edge_sdk.wire.graphs import DOMAINS, MAX_GRAPH_BYTES, check_graph
from export.lowering import serialize
from export.optimizers import optimizer_graphs

WEIGHT = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "weight")


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = (WEIGHT,)) -> onnx.ModelProto:
    """A model of these nodes, from `x` to `y`."""
    given_ = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(nodes), "g", given_, made, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


GOOD = model(helper.make_node("MatMul", ["x", "weight"], ["y"]))


def refused(proto: onnx.ModelProto) -> str:
    """Why."""
    with pytest.raises(DecodeError) as caught:
        check_graph(proto.SerializeToString())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_the_exporter_makes_is_accepted() -> None:
    """A product, and the optimizers' graphs."""
    check_graph(GOOD.SerializeToString())
    for graph in optimizer_graphs().values():
        check_graph(serialize(graph))


@pytest.mark.parametrize("operator", ["RandomNormal", "Loop", "If", "Scan", "Multinomial", "SequenceInsert", "Print"])
def test_an_operator_that_is_not_on_the_list(operator: str) -> None:
    """Chance, control flow, sequences, and what nobody ever heard of."""
    assert operator in refused(model(helper.make_node(operator, ["x"], ["y"])))


def test_a_domain_is_part_of_the_name() -> None:
    """An allowed name of somebody else's library is another operator."""
    assert "elsewhere.MatMul" in refused(model(helper.make_node("MatMul", ["x", "weight"], ["y"], domain="elsewhere")))
    assert "com.microsoft.MatMul" in refused(
        model(helper.make_node("MatMul", ["x", "weight"], ["y"], domain="com.microsoft"))
    )


def test_a_graph_within_a_graph() -> None:
    """In an attribute of an operator that is allowed."""
    inner = helper.make_graph([], "inner", [], [])
    assert "branch" in refused(model(helper.make_node("MatMul", ["x", "weight"], ["y"], body=inner)))


def test_functions_and_training_information() -> None:
    """What brings its own operators, or its own training, is none of ours."""
    function = helper.make_function("elsewhere", "MatMul", ["a"], ["b"], [], [helper.make_opsetid("", 21)])
    with_function, with_training = onnx.ModelProto(), onnx.ModelProto()
    with_function.CopyFrom(GOOD)
    with_function.functions.append(function)
    with_training.CopyFrom(GOOD)
    with_training.training_info.append(onnx.TrainingInfoProto())
    assert "functions" in refused(with_function)
    assert "functions" in refused(with_training)


def test_a_tensor_in_another_file() -> None:
    """As an initializer, and in an attribute: nothing on the device's disk is read for a graph."""
    tensor = onnx.TensorProto()
    tensor.CopyFrom(WEIGHT)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))
    assert "another file" in refused(model(helper.make_node("MatMul", ["x", "weight"], ["y"]), initializers=(tensor,)))
    assert "another file" in refused(model(helper.make_node("Constant", [], ["y"], value=tensor)))


def test_a_tensor_that_is_not_there() -> None:
    """A shape that its bytes do not fill, negative, or huge: no memory is taken on its word."""
    for dims in ((2, 4), (1 << 62,), (1 << 20, 1 << 20), (-1,), (1,) * 17):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(WEIGHT)
        del tensor.dims[:]
        tensor.dims.extend(dims)
        assert "tensor" in refused(model(helper.make_node("MatMul", ["x", "weight"], ["y"]), initializers=(tensor,)))


def test_two_graphs_and_none() -> None:
    """Protobuf merges what comes twice: what was checked would not be what is loaded."""
    data = GOOD.SerializeToString()
    for bytes_ in (data + data, b""):
        with pytest.raises(DecodeError, match="one is expected"):
            check_graph(bytes_)


def test_too_large() -> None:
    """Before anything of it is looked at."""
    with pytest.raises(TooLargeError):
        check_graph(bytes(MAX_GRAPH_BYTES + 1))


@given(st.binary(max_size=200) | st.integers(0, 400).map(lambda n: GOOD.SerializeToString()[:n]))
def test_bytes_that_are_no_graph(data: bytes) -> None:
    """Whatever they are: refused as what they are, or a graph that is allowed."""
    try:
        check_graph(data)
    except DecodeError:
        return
    nodes = onnx.ModelProto.FromString(data).graph.node
    assert all(node.op_type in DOMAINS[node.domain] for node in nodes)


@given(st.data())
def test_a_changed_byte_changes_nothing_that_is_allowed(data: st.DataObject) -> None:
    """What is accepted has only operators of the list, as onnx itself reads it."""
    good = bytearray(GOOD.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_graph(bytes(good))
    except DecodeError:
        return
    try:
        read = onnx.ModelProto.FromString(bytes(good))
    except Exception:  # noqa: BLE001 - google's DecodeError is of no module with types; onnxruntime refuses it as well
        return
    for node in read.graph.node:
        assert node.op_type in DOMAINS[node.domain]
        assert not any(attribute.HasField("g") for attribute in node.attribute)
    assert not any(tensor.external_data for tensor in read.graph.initializer)


def test_a_device_does_not_load_it(tmp_path: pathlib.Path) -> None:
    """The engine asks before onnxruntime does, and says it in one line."""
    path = tmp_path / "graph"
    path.write_bytes(model(helper.make_node("RandomNormalLike", ["x"], ["y"])).SerializeToString())
    with pytest.raises(
        ArtifactError, match=r"^graph graph is not loaded: the graph has the operator 'RandomNormalLike'"
    ):
        Graph(path, 1)
    path.write_bytes(GOOD.SerializeToString())
    assert Graph(path, 1).outputs == ("y",)
