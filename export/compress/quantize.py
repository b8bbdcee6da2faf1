"""Fewer bits: frozen matrices as int8 with one scale per row, symmetric.

    scale[i] = max_j |w[i, j]| / 127        q[i, j] = round(w[i, j] / scale[i])        w' = scale[:, None] * q

The same rule twice: on tensors, and as a graph pass that turns an input `w` into `w` (int8) and `w.scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edge_sdk.wire.tensors import Array

FULL_BITS = 32  # of a weight that is left as it is
LARGEST = 127  # -128 is not used: the range stays symmetric


def quantize_rows(matrix: Array) -> tuple[Array, Array]:
    """`matrix` (out, in) float32 as int8 of the same shape and scales (out,) float32.

    A row of zeros has scale 1, and so has one too small for a scale that float32 holds in full: it becomes zeros.
    """
    scale = np.abs(matrix).max(axis=1).astype(np.float32) / np.float32(LARGEST)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    return np.rint(matrix / scale[:, None]).clip(-LARGEST, LARGEST).astype(np.int8), scale


def dequantize_rows(quantized: Array, scale: Array) -> Array:
    """float32 again, as the graphs compute it."""
    return np.asarray(quantized.astype(np.float32) * scale[:, None])


def is_quantized(shape: Sequence[int]) -> bool:
    """Whether a frozen tensor is stored as int8 at a level of 8 bits: matrices are, vectors are not worth it."""
    return len(shape) == 2  # noqa: PLR2004 - a matrix


def quantize_tensors(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Frozen tensors by input name -> the same with each matrix `w` as `w` and `w.scale`."""
    found: dict[str, Array] = {}
    for name, array in tensors.items():
        if is_quantized(array.shape):
            found[name], found[f"{name}.scale"] = quantize_rows(array)
        else:
            found[name] = array
    return found


class QuantizeInputs(ir.passes.InPlacePass):
    """Turn matrix inputs into int8 inputs with scales.

    Requires: each of `names` is a float32 graph input of two dimensions.
    Ensures: it is int8 and followed by `<name>.scale` float32 (rows,); rows that are looked up are dequantised after
    the look-up, so that an embedding is never dequantised whole; every other use sees one DequantizeLinear.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Remember which inputs."""
        self.names = tuple(names)

    def requires(self, model: ir.Model) -> None:
        """Each name is a float32 matrix."""
        inputs = {value.name: value for value in model.graph.inputs}
        for name in self.names:
            value = inputs.get(name)
            if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 2:  # noqa: PLR2004
                msg = f"{name} is no float32 matrix among the inputs"
                raise ir.passes.PreconditionError(msg)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite input by input."""
        for name in self.names:
            _quantize_input(model.graph, name)
        return ir.passes.PassResult(model, modified=bool(self.names))

    def ensures(self, model: ir.Model) -> None:
        """Each name is int8 and has its scale behind it."""
        names = [value.name for value in model.graph.inputs]
        for name in self.names:
            index = names.index(name)
            if names[index + 1] != f"{name}.scale" or model.graph.inputs[index].dtype != ir.DataType.INT8:
                msg = f"{name} was not quantised"
                raise ir.passes.PostconditionError(msg)


def _quantize_input(graph: ir.Graph, name: str) -> None:
    index = next(k for k, value in enumerate(graph.inputs) if value.name == name)
    matrix = graph.inputs[index]
    if matrix.shape is None:  # checked by the pass
        raise AssertionError
    scale = ir.Value(name=f"{name}.scale", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([matrix.shape[0]]))
    graph.inputs.insert(index + 1, scale)
    uses = list(matrix.uses())
    matrix.type = ir.TensorType(ir.DataType.INT8)
    products = [use for use in uses if not _looks_up_rows(use.node, use.idx)]
    for use in uses:
        if _looks_up_rows(use.node, use.idx):
            _dequantize_rows_after(graph, use.node, scale)
    if products:
        node = ir.node("DequantizeLinear", [matrix, scale], {"axis": 0})
        graph.insert_before(min((use.node for use in products), key=list(graph).index), node)
        for use in products:
            use.node.replace_input_with(use.idx, node.outputs[0])


def _looks_up_rows(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0


def _dequantize_rows_after(graph: ir.Graph, gather: ir.Node, scale: ir.Value) -> None:
    rows, looked_up = gather.outputs[0], gather.inputs[1]
    last = ir.node("Constant", [], {"value_ints": [-1]})
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT})
    scales = ir.node("Gather", [scale, looked_up], {"axis": 0})
    column = ir.node("Unsqueeze", [scales.outputs[0], last.outputs[0]])
    product = ir.node("Mul", [cast.outputs[0], column.outputs[0]])
    product.outputs[0].name, rows.name = rows.name, None
    product.outputs[0].type = rows.type
    rows.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, rows)
    graph.insert_after(gather, [last, cast, scales, column, product])
