"""Formulas in fewer operators: each gives what torch's gives, on any sizes, and is not applied where it would not."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from export.capture import IR_VERSION, OPSET
from export.formulas import lean
from export.lowering import serialize, simplify

SCALARS = "one = Constant <value_float = 1.0> () last = Constant <value_ints = [-1]> ()"
HEAD = "float[batch, 6, tokens, 4]"

RMS_NORM = f"""(float[batch, tokens, 8] x, float[WEIGHTS] w)
    => (float[batch, tokens, 8] y, float[batch, tokens, 1] r) {{
    {SCALARS} two = Constant <value_float = 2.0> () epsilon = Constant <value_float = 0.01> ()
    square = Pow (x, two) mean = ReduceMean <keepdims = 1> (square, last) shifted = Add (mean, epsilon)
    root = Sqrt (shifted) s = Reciprocal (root) normed = Mul (x, s) z = Mul (w, normed)
    y = Abs (z) r = Neg (s) }}"""

RMS_GRADIENT = f"""(float[batch, tokens, 8] x, float[batch, tokens, 1] r, float[batch, tokens, 1] total)
    => (float[batch, tokens, 8] y) {{
    {SCALARS} two = Constant <value_float = 2.0> () three = Constant <value_float = 3.0> ()
    half = Constant <value_float = -0.5> () width = Constant <value_float = 8.0> ()
    shape = Shape (x) cube = Pow (r, three) a = Mul (total, half) b = Mul (a, cube) c = Expand (b, shape)
    d = Div (c, width) e = Mul (x, two) z = Mul (d, e) y = Abs (z) }}"""

SILU_GRADIENT = f"""(float[batch, 8] x, float[batch, 8] dy) => (float[batch, 8] y) {{
    {SCALARS} s = Sigmoid (x) a = Mul (dy, s) b = Sub (one, s) c = Mul (x, b) d = Add (c, one) z = Mul (a, d)
    y = Abs (z) }}"""

GELU_GRADIENT = f"""(float[batch, 8] x, float[batch, 8] dy) => (float[batch, 8] y) {{
    {SCALARS} half = Constant <value_float = 0.5> () two = Constant <value_float = 2.0> ()
    three = Constant <value_float = 3.0> () a = Constant <value_float = 0.044715> ()
    k = Constant <value_float = 0.7978845608> ()
    start = Mul (x, half) cube = Pow (x, three) scaled = Mul (cube, a) inner = Add (x, scaled) z = Mul (inner, k)
    t = Tanh (z) up = Add (t, one) b = Mul (dy, start) c = Mul (dy, up) tt = Mul (t, t) d = Sub (one, tt)
    e = Mul (b, d) f = Mul (e, k) g = Mul (f, a) square = Pow (x, two) h = Mul (square, three) i = Mul (g, h)
    j = Add (f, i) l = Mul (c, half) m = Add (j, l) y = Abs (m) }}"""

PADDED = """(float[batch, 3] first, float[batch, 5] second) => (float[batch, 8] y) {
    after = Constant <value_ints = [0, A, 0, B]> () before = Constant <value_ints = [0, C, 0, D]> ()
    zero = Constant <value_float = 0.0> ()
    a = Pad <mode = "constant"> (first, after, zero) b = Pad <mode = "constant"> (second, before, zero)
    z = Add (a, b) y = Abs (z) }"""

SHARED_KEYS = """(float[3, 6, 5, 4] q, float[3, 2, 5, 4] k) => (float[3, 6, 5, 5] y, float[3, 6, 5, 4] o) {
    two = Constant <value_ints = [2]> () heads = Constant <value_ints = [3, 6, 5, 4]> ()
    copies = Constant <value_ints = [3, 2, 3, 5, 4]> () scale = Constant <value_float = 0.5> ()
    apart = Unsqueeze (k, two) many = Expand (apart, copies) keys = Reshape (many, heads)
    swapped = Transpose <perm = [0, 1, 3, 2]> (keys) product = MatMul (q, swapped) scores = Mul (product, scale)
    y = Abs (scores) found = MatMul (scores, keys) o = Abs (found) }"""

SUMMED_KEYS = f"""({HEAD} q, {HEAD} k) => (float[batch, 2, 4, 4] y) {{
    two = Constant <value_ints = [2]> () copies = Constant <value_ints = [0, 2, 3, 4, 4]> ()
    swapped = Transpose <perm = [0, 1, 3, 2]> (q) product = MatMul (swapped, k)
    apart = Reshape (product, copies) total = ReduceSum <keepdims = 1> (apart, two)
    z = Squeeze (total, two) y = Abs (z) }}"""


def graph(body: str) -> ir.Model:
    """A graph with the shapes of its values, as torch's exporter gives them."""
    text = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]> small {body}'
    inferred = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True, data_prop=True)
    return ir.from_proto(inferred)


def kinds(model: ir.Model) -> collections.Counter[str]:
    """How many nodes of each kind."""
    return collections.Counter(node.op_type for node in model.graph)


def run(model: ir.Model, given: dict[str, Any]) -> list[Any]:
    """All outputs."""
    session = onnxruntime.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, given)
    return found


def inputs(model: ir.Model) -> dict[str, Any]:
    """Random numbers for the inputs: a batch of three, of five tokens."""
    random, sizes = np.random.default_rng(0), {"batch": 3, "tokens": 5}
    return {
        value.name or "": random.normal(size=[sizes.get(str(n)) or int(str(n)) for n in value.shape or ()]).astype("f")
        for value in model.graph.inputs
    }


def padded(*numbers: int) -> str:
    """`PADDED` with as many zeros before and after each part."""
    body = PADDED
    for letter, number in zip("ABCD", numbers, strict=True):
        body = body.replace(f" {letter},", f" {number},").replace(f" {letter}]", f" {number}]")
    return body


@pytest.mark.parametrize(
    ("body", "gone"),
    [
        (RMS_NORM.replace("WEIGHTS", "8"), {"Pow", "ReduceMean", "Sqrt", "Reciprocal", "Mul"}),
        (RMS_GRADIENT, {"Pow", "Expand", "Div"}),
        (GELU_GRADIENT, {"Pow", "Tanh"}),
        (padded(0, 5, 3, 0), {"Pad", "Add"}),
        (padded(5, 0, 0, 3), {"Pad", "Add"}),
        (SHARED_KEYS, {"Expand", "Unsqueeze", "Transpose", "Mul"}),
        (SUMMED_KEYS, {"ReduceSum", "Squeeze", "Transpose"}),
    ],
    ids=[
        "rms norm",
        "its gradient",
        "tanh gelu's gradient",
        "parts in order",
        "parts swapped",
        "shared keys",
        "summed keys",
    ],
)
def test_lean_formulas_compute_the_same(body: str, gone: set[str]) -> None:
    """The same numbers, and the operators that it was about are gone."""
    model = graph(body)
    given = inputs(model)
    wanted = run(model, given)
    lean(simplify(model))
    assert not gone & set(kinds(model))
    for one, other in zip(run(model, given), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_silus_gradient_shares_what_the_way_there_has() -> None:
    """What the way there computes, x sigmoid(x), is a part of it: one operator less."""
    model = graph(SILU_GRADIENT)
    given = inputs(model)
    wanted = run(model, given)
    lean(simplify(model))
    assert kinds(model) == {"Sigmoid": 1, "Mul": 3, "Sub": 1, "Add": 1, "Abs": 1}
    np.testing.assert_allclose(run(model, given)[0], wanted[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (RMS_NORM.replace("WEIGHTS", "1"), "ReduceMean"),
        (padded(0, 5, 0, 3), "Pad"),
        (padded(2, 3, 0, 3), "Pad"),
        (
            SUMMED_KEYS.replace("[0, 2, 3, 4, 4]", "[0, 2, 3, 16, 1]").replace(
                "[batch, 2, 4, 4] y", "[batch, 2, 16, 1] y"
            ),
            "ReduceSum",
        ),
    ],
    ids=["one weight for all", "parts that overlap", "parts off the edge", "a sum in another shape"],
)
def test_formulas_that_only_look_alike_are_left(body: str, left: str) -> None:
    """Where a requirement is not met nothing changes."""
    model = lean(simplify(graph(body)))
    assert left in kinds(model)
