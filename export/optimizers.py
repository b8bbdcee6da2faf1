"""The optimizers as ONNX graphs: with them an artifact holds all of a training step, for a runtime in any language.

Each works on one tensor, flattened to (n,), or on any part of one: a runtime that goes part by part needs no second
copy of a tensor. `new_x` is what replaces `x` afterwards. Moments start as zeros; `step` counts from 1 and is the step
being made. What depends on `step` is computed in float64, as 1 - 0.999 would lose four digits; the rest in float32.
The formulas, and their order, are `edge_sdk.engine.optimizers`'s.
"""

from __future__ import annotations

import onnx_ir as ir

from export.capture import IR_VERSION, OPSET
from export.lowering import Canonicalize

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.9
DOUBLE, FLOAT = ir.DataType.DOUBLE.value, ir.DataType.FLOAT.value

ADAMW = f"""
adamw (
    float[n] parameter, float[n] gradient, float[n] first, float[n] second,
    float learning_rate, float weight_decay, int64 step
) => (float[n] new_parameter, float[n] new_first, float[n] new_second)
<
    double one = {{1.0}}, double beta1 = {{{BETA1}}}, double beta2 = {{{BETA2}}}, double epsilon = {{{EPSILON}}},
    float share1 = {{{1 - BETA1}}}, float share2 = {{{1 - BETA2}}}
> {{
    t = Cast <to = {DOUBLE}> (step)
    power1 = Pow (beta1, t)
    power2 = Pow (beta2, t)
    correction1 = Sub (one, power1)
    correction2 = Sub (one, power2)
    correction = Sqrt (correction2)
    rate = Cast <to = {DOUBLE}> (learning_rate)
    corrected = Mul (rate, correction)
    exact_size = Div (corrected, correction1)
    size = Cast <to = {FLOAT}> (exact_size)
    exact_least = Mul (epsilon, correction)
    least = Cast <to = {FLOAT}> (exact_least)
    decay = Cast <to = {DOUBLE}> (weight_decay)
    decayed = Mul (rate, decay)
    exact_keep = Sub (one, decayed)
    keep = Cast <to = {FLOAT}> (exact_keep)

    off1 = Sub (gradient, first)
    change1 = Mul (off1, share1)
    new_first = Add (first, change1)
    square = Mul (gradient, gradient)
    off2 = Sub (square, second)
    change2 = Mul (off2, share2)
    new_second = Add (second, change2)
    root = Sqrt (new_second)
    divisor = Add (root, least)
    direction = Div (new_first, divisor)
    change = Mul (direction, size)
    kept = Mul (parameter, keep)
    new_parameter = Sub (kept, change)
}}
"""

SGD = f"""
sgd (
    float[n] parameter, float[n] gradient, float[n] velocity, float learning_rate, float weight_decay
) => (float[n] new_parameter, float[n] new_velocity)
<double one = {{1.0}}, float momentum = {{{MOMENTUM}}}> {{
    rate = Cast <to = {DOUBLE}> (learning_rate)
    decay = Cast <to = {DOUBLE}> (weight_decay)
    decayed = Mul (rate, decay)
    exact_keep = Sub (one, decayed)
    keep = Cast <to = {FLOAT}> (exact_keep)

    slowed = Mul (velocity, momentum)
    new_velocity = Add (slowed, gradient)
    change = Mul (new_velocity, learning_rate)
    kept = Mul (parameter, keep)
    new_parameter = Sub (kept, change)
}}
"""

SQUARE_SUM = f"""
square_sum (float[n] gradient) => (double square_sum) {{
    wide = Cast <to = {DOUBLE}> (gradient)
    square_sum = ReduceSumSquare <keepdims = 0> (wide)
}}
"""

CLIP = f"""
clip (float[n] gradient, double square_sum, float clip_norm) => (float[n] new_gradient)
<double zero = {{0.0}}, double one = {{1.0}}> {{
    norm = Sqrt (square_sum)
    bound = Cast <to = {DOUBLE}> (clip_norm)
    bounded = Greater (bound, zero)
    longer = Less (bound, norm)
    infinite = IsInf (norm)
    finite = Not (infinite)
    too_long = And (bounded, longer)
    shorten = And (too_long, finite)
    ratio = Div (bound, norm)
    exact_factor = Where (shorten, ratio, one)
    factor = Cast <to = {FLOAT}> (exact_factor)
    new_gradient = Mul (gradient, factor)
}}
"""


def optimizer_graphs() -> dict[str, ir.Model]:
    """`adamw`, `sgd`; `square_sum` and `clip`, which bound the gradients' global norm before either.

    A runtime adds up `square_sum` over all tensors (and parts of them) and gives the sum to `clip` with each; a
    `clip_norm` of 0 is no bound, and a norm that is not finite changes nothing.
    """
    return {"adamw": _graph(ADAMW), "sgd": _graph(SGD), "square_sum": _graph(SQUARE_SUM), "clip": _graph(CLIP)}


def _graph(text: str) -> ir.Model:
    """From ONNX's textual syntax, https://github.com/onnx/onnx/blob/main/docs/Syntax.md."""
    model = ir.from_onnx_text(f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>{text}')
    Canonicalize()(model)
    return model
