"""Formulas as torch writes them -> the same in fewer operators: each is a pattern over the graph and what replaces it.

What is left beside products is bound by memory and by calls: every operator reads and writes its whole tensor, and a
call costs as much as a product with few rows. Gradients that torch composes of many elementwise steps are written out
by hand. The formulas are matched operator by operator: where torch's change, nothing matches and nothing breaks, but
the tests that count operators fail.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import pattern

from export.lowering import MICROSOFT

Op = Any  # onnxscript's tape of operators
Value = Any


def _like(shaped: Value, *values: Value) -> None:
    for value in values:
        value.shape, value.type = shaped.shape, shaped.type


def _number(value: Value) -> float:
    return float(value.const_value.numpy())


# Norm by root mean square: y = w x r with r = 1 / sqrt(mean(x^2) + epsilon). https://arxiv.org/abs/1910.07467


def _rms_norm(op: Op, x: Value, weight: Value, epsilon: Value) -> tuple[Value, Value]:
    mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
    scale = op.Reciprocal(op.Sqrt(op.Add(mean, epsilon)))
    return op.Mul(weight, op.Mul(x, scale)), scale


def _rms_norm_lean(op: Op, x: Value, weight: Value, epsilon: Value) -> tuple[Value, Value]:
    # An operator of onnxruntime, which has it in ONNX's own domain.
    y, scale = op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=_number(epsilon), stash_type=1, _outputs=2)
    return y, scale


def _is_weight_of(_context: Any, x: Value, weight: Value, epsilon: Value, **_: Value) -> bool:  # noqa: ANN401
    """One weight for each number of the last dimension, and a constant epsilon."""
    if epsilon.const_value is None:
        return False
    return x.shape is not None and weight.shape is not None and list(weight.shape) == list(x.shape[-1:])


def _rms_norm_gradient(op: Op, x: Value, scale: Value, total: Value, shape: Value, width: Value) -> Value:
    """The part of the gradient that flows through r; `total` = sum(g x)."""
    flowing = op.Expand(op.Mul(op.Mul(total, -0.5), op.Pow(scale, 3.0)), shape)
    return op.Mul(op.Div(flowing, width), op.Mul(x, 2.0))


def _rms_norm_gradient_lean(op: Op, x: Value, scale: Value, total: Value, width: Value, **_: Value) -> Value:
    square = op.Mul(scale, scale)
    cube = op.Mul(scale, square)
    share = op.Mul(cube, op.Constant(value_float=-1.0 / _number(width)))
    _like(scale, square, cube, share)
    return op.Mul(x, op.Mul(total, share))


def _is_shared_by_rows(_context: Any, x: Value, scale: Value, total: Value, **_: Value) -> bool:  # noqa: ANN401
    """One factor a row: multiplied with x it needs no copies."""
    return x.shape is not None and all(
        v.shape is not None and list(v.shape) == [*x.shape[:-1], 1] for v in (scale, total)
    )


# SiLU: y = x s with s = sigmoid(x); dy/dx = s + y (1 - s).


def _silu_gradient(op: Op, x: Value, dy: Value) -> Value:
    s = op.Sigmoid(x)
    return op.Mul(op.Mul(dy, s), op.Add(op.Mul(x, op.Sub(1.0, s)), 1.0))


def _silu_gradient_lean(op: Op, x: Value, dy: Value) -> Value:
    s = op.Sigmoid(x)
    y = op.Mul(x, s)
    rest = op.Sub(op.Constant(value_float=1.0), s)
    slope = op.Mul(y, rest)
    total = op.Add(s, slope)
    _like(x, s, y, rest, slope, total)
    return op.Mul(dy, total)


# GELU by tanh, which is a sigmoid: y = x s with s = sigmoid(2 k (x + a x^3)), and so
# dy/dx = s + x s (1 - s) 2 k (1 + 3 a x^2). https://arxiv.org/abs/1606.08415
CUBIC, SLOPE = 0.044715, math.sqrt(2 / math.pi)


def _tanh_gelu_gradient(op: Op, x: Value, dy: Value) -> Value:
    tanh = op.Tanh(op.Mul(op.Add(x, op.Mul(op.Pow(x, 3.0), CUBIC)), SLOPE))
    inner = op.Mul(op.Mul(op.Mul(dy, op.Mul(x, 0.5)), op.Sub(1.0, op.Mul(tanh, tanh))), SLOPE)
    cubic = op.Mul(op.Mul(inner, CUBIC), op.Mul(op.Pow(x, 2.0), 3.0))
    return op.Add(op.Add(inner, cubic), op.Mul(op.Mul(dy, op.Add(tanh, 1.0)), 0.5))


def _tanh_gelu_gradient_lean(op: Op, x: Value, dy: Value) -> Value:
    def line(square: Value, slope: float, start: float) -> tuple[Value, Value]:
        product = op.Mul(square, op.Constant(value_float=slope))
        return product, op.Add(product, op.Constant(value_float=start))

    square = op.Mul(x, x)
    product, factor = line(square, 2 * SLOPE * CUBIC, 2 * SLOPE)
    argument = op.Mul(x, factor)
    s = op.Sigmoid(argument)
    other, inner = line(square, 6 * SLOPE * CUBIC, 2 * SLOPE)
    y = op.Mul(x, s)
    rest = op.Sub(op.Constant(value_float=1.0), s)
    first = op.Mul(y, rest)
    second = op.Mul(first, inner)
    total = op.Add(s, second)
    _like(x, square, product, factor, argument, s, other, inner, y, rest, first, second, total)
    return op.Mul(dy, total)


# The gradient of a concatenation's parts, each padded to the whole and added, is a concatenation.


def _padded_parts(op: Op, first: Value, second: Value, after: Value, before: Value) -> Value:
    return op.Add(op.Pad(first, after, 0.0, mode="constant"), op.Pad(second, before, 0.0, mode="constant"))


def _joined_parts(op: Op, first: Value, second: Value, after: Value, before: Value) -> Value:
    axis, in_order = _seam(first, second, after, before) or (0, True)
    return op.Concat(*((first, second) if in_order else (second, first)), axis=axis)


def _complement(_context: Any, first: Value, second: Value, after: Value, before: Value) -> bool:  # noqa: ANN401
    return _seam(first, second, after, before) is not None


def _seam(first: Value, second: Value, one: Value, other: Value) -> tuple[int, bool] | None:
    """The dimension along which each is padded by as much as the other fills, and whether `first` comes first."""
    if any(value.shape is None for value in (first, second)) or any(v.const_value is None for v in (one, other)):
        return None
    rank = len(first.shape)
    for axis in range(rank):
        for in_order in (True, False):
            padding = np.zeros((2, 2, rank), np.int64)  # of the first, of the second; before, after
            lengths = (first.shape[axis], second.shape[axis])
            if not all(isinstance(length, int) for length in lengths):
                continue
            padding[0, int(in_order), axis], padding[1, int(not in_order), axis] = lengths[1], lengths[0]
            if all(
                np.array_equal(p.ravel(), v.const_value.numpy()) for p, v in zip(padding, (one, other), strict=True)
            ):
                return axis, in_order
    return None


# Grouped queries: h heads of queries share h / n heads of keys and values. Instead of n copies of each of those, the
# queries of a group are more rows of one product: (batch, h, tokens, d) is (batch, h / n, n tokens, d) without a copy.


def _copies(op: Op, shared: Value, copies: Value, heads: Value) -> Value:
    return op.Reshape(op.Expand(op.Unsqueeze(shared, [2]), copies, _outputs=["expanded"]), heads)


def _product_with_copies(op: Op, rows: Value, shared: Value, copies: Value, heads: Value) -> Value:
    return op.MatMul(rows, _copies(op, shared, copies, heads), _outputs=["product"])


def _scaled_product_with_copies(op: Op, rows: Value, shared: Value, copies: Value, heads: Value) -> Value:
    operands = (rows, _copies(op, shared, copies, heads))
    return op.FusedMatMul(*operands, _domain=MICROSOFT, _allow_other_attributes=True, _outputs=["product"])


def _product_of_groups(op: Op, rows: Value, shared: Value, product: Value, **_: Value) -> Value:
    found = _as(product, op, _grouped(op, rows, shared), shared)
    found.shape, found.type = _shape_of_groups(product, shared.shape[1]), product.type
    return op.Reshape(found, op.Constant(value_ints=[0, product.shape[1], -1, 0]))


def _sum_over_copies(op: Op, rows: Value, other: Value, copies: Value) -> Value:
    operands = {"_domain": MICROSOFT, "_allow_other_attributes": True, "_outputs": ["product"]}
    product = op.FusedMatMul(rows, other, transA=1, **operands)
    return op.Squeeze(op.ReduceSum(op.Reshape(product, copies), [2], keepdims=1, _outputs=["total"]), [2])


def _product_of_more_rows(op: Op, rows: Value, other: Value, product: Value, total: Value, **_: Value) -> Value:
    return _as(product, op, _grouped(op, rows, total), _grouped(op, other, total))


def _as(product: Value, op: Op, left: Value, right: Value) -> Value:
    """The product of other operands, with the same swaps and the same factor."""
    node = product.producer()
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return getattr(op, node.op_type)(left, right, **attributes, _domain=node.domain, _version=node.version)


def _grouped(op: Op, rows: Value, shared: Value) -> Value:
    groups = shared.shape[1]
    found = op.Reshape(rows, op.Constant(value_ints=[0, groups, -1, 0]))
    found.shape, found.type = _shape_of_groups(rows, groups), rows.type
    return found


def _shape_of_groups(value: Value, groups: int) -> ir.Shape:
    batch, heads, tokens, width = value.shape
    return ir.Shape([batch, groups, f"{heads // groups}*{tokens}", width])


def _copies_are_of_heads(
    _context: Any,  # noqa: ANN401
    rows: Value,
    shared: Value,
    expanded: Value,
    product: Value,
    **_: Value,
) -> bool:
    """Each group's keys are copied once for each of its heads; rows are the left operand's, which is not swapped."""
    if product.producer().attributes.get_int("transA", 0) or any(v.shape is None for v in (rows, shared, expanded)):
        return False
    return _are_groups(rows, expanded.shape[1]) and list(expanded.shape) == [
        *shared.shape[:2],
        rows.shape[1] // shared.shape[1],
        *shared.shape[2:],
    ]


def _sum_is_over_heads(_context: Any, rows: Value, product: Value, total: Value, **_: Value) -> bool:  # noqa: ANN401
    """The sum is over each group's heads and leaves all other dimensions as they are."""
    if any(v.shape is None for v in (rows, product, total)):
        return False
    batch, _heads, *size = product.shape
    return _are_groups(rows, total.shape[1]) and list(total.shape) == [batch, total.shape[1], 1, *size]


def _are_groups(rows: Value, groups: int | ir.SymbolicDim) -> bool:
    heads = rows.shape[1] if len(rows.shape) == HEADS_RANK else None
    return isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0


HEADS_RANK = 4  # batch, heads, tokens, size of a head

RULES = tuple(
    pattern.RewriteRule(target, replacement, condition, name=target.__name__, remove_nodes=False)
    for target, replacement, condition in (
        (_rms_norm, _rms_norm_lean, _is_weight_of),
        (_rms_norm_gradient, _rms_norm_gradient_lean, _is_shared_by_rows),
        (_silu_gradient, _silu_gradient_lean, None),
        (_tanh_gelu_gradient, _tanh_gelu_gradient_lean, None),
        (_padded_parts, _joined_parts, _complement),
        (_product_with_copies, _product_of_groups, _copies_are_of_heads),
        (_scaled_product_with_copies, _product_of_groups, _copies_are_of_heads),
        (_sum_over_copies, _product_of_more_rows, _sum_is_over_heads),
    )
)


def lean(model: ir.Model) -> ir.Model:
    """Replace each of `RULES` wherever it occurs, in place. Values must have shapes, and they still do."""
    pattern.RewriteRuleSet(RULES).apply_to_model(model)
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
    return model
