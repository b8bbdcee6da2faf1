"""Faster products: what flows back times a matrix of 8 bits, in int8 with sums of 32 bits.

The gradient is no longer exact for the quantised weights. A token's row `dy` becomes 8 bits with a scale of its own,
for gradients of neighbouring tokens are orders of magnitude apart:

    top[t] = max_o |dy[t, o] scale[o]|        dx[t, j] = top[t] sum_o round8(dy[t, o] scale[o] / top[t]) w[o, j]

The way there stays exact: its activations have a few channels so large that 8 bits leave little of the others.
docs/adr/0009-precision.md has the errors and the times of both.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.compress.quantize import constant, is_quantized, share_constants, substitute
from export.lowering import CONTRIB_VERSION, MICROSOFT

INTEGER_BITS = 8  # of the matrices that can be multiplied so
TINY = np.finfo(np.float32).tiny  # what a row of zeros, as of padding, is divided by


class MultiplyBackInIntegers(ir.passes.InPlacePass):
    """Turn products of what depends on `dy` with a matrix that is held in 8 bits into integer products.

    Requires: matrices are read by DequantizeLinear, a scale per row, as `QuantizeInputs` makes it.
    Ensures: all else, and so the way there that is computed again, is as it was.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite product by product; a matrix that nothing else uses is not dequantised any more."""
        graph = model.graph
        flowing = {value for value in graph.inputs if value.name == "dy"}
        modified = False
        for node in list(graph):
            if flowing.isdisjoint(node.inputs):
                continue
            rows = _rows_multiplied(node)
            flowing.update(node.outputs if rows is None else [_multiply_in_integers(graph, node, *rows)])
            modified |= rows is not None
        if modified:
            graph.opset_imports[MICROSOFT] = CONTRIB_VERSION
            common.RemoveUnusedNodesPass()(model)
            share_constants(model)
        return ir.passes.PassResult(model, modified=modified)


def _rows_multiplied(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """For a product `a w`, or `a` times `w` transposed, with `w` held in 8 bits: `a`, the int8 matrix, its scale."""
    if node.op_type not in {"MatMul", "FusedMatMul"} or set(node.attributes) - {"transB"}:
        return None
    left, right = node.inputs
    reading = None if right is None else right.producer()
    if left is None or reading is None or reading.op_type != "DequantizeLinear":
        return None
    matrix, scale = reading.inputs[:2]
    if matrix is None or scale is None or not matrix.is_graph_input() or not is_quantized(tuple(matrix.shape or ())):
        return None  # nibbles, or an activation that was kept in 8 bits
    return left, matrix, scale


def _multiply_in_integers(
    graph: ir.Graph, node: ir.Node, left: ir.Value, matrix: ir.Value, scale: ir.Value
) -> ir.Value:
    tape = ir.tape.Tape()
    if node.attributes.get_int("transB", 0):
        right, scales = tape.op("Transpose", [matrix], {"perm": [1, 0]}), scale
    else:
        left, right, scales = tape.op("Mul", [left, scale]), matrix, constant(tape, np.array(1, np.float32))
    top = tape.op("ReduceMax", [tape.op("Abs", [left]), constant(tape, [-1])], {"keepdims": 1})
    top = tape.op("Max", [top, constant(tape, np.array(TINY))])
    inputs = [tape.op("Div", [left, top]), right, scales]
    product = tape.op("DynamicQuantizeMatMul", inputs, domain=MICROSOFT, version=CONTRIB_VERSION)
    found = tape.op("Mul", [product, top])
    substitute(graph, node, tape, found)
    return found
