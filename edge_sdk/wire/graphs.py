"""What a graph may be made of, read from its bytes before any runtime loads them.

A graph is a program from elsewhere. It may compute: operators of OPERATORS and FUSED, on tensors that lie in its own
bytes. It may not choose its path or repeat itself (If, Loop, Scan: a graph in an attribute), draw by lot, read a file
(external data), bring functions or operators of its own, or claim tensors that its bytes do not hold.

A message of ONNX is protobuf: fields of a number, a wire type, and a value, in any order (the wire format's
specification, protobuf.dev/programming-guides/encoding). Fields that say nothing of all this are skipped; numbers of
fields are those of onnx.proto, ONNX 1.20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NoReturn

from edge_sdk.wire.errors import DecodeError, TooLargeError

MAX_GRAPH_BYTES: Final = 64 << 20
MAX_NODES: Final = 100_000
MAX_NUMBER_BYTES: Final = 10  # of a varint
MAX_DIMENSIONS: Final = 16
MORE: Final = 0x80

# By domain: ONNX's own, and onnxruntime's fused ones. All that the exporter writes, and their next of kin.
# fmt: off
OPERATORS: Final = frozenset(
    (
        "Abs", "Add", "And", "ArgMax", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
        "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Cos", "CumSum",
        "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten",
        "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity",
        "IsInf", "IsNaN", "LayerNormalization", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "MatMulInteger",
        "Max", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad", "Pow", "QuantizeLinear", "RMSNormalization",
        "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign",
        "Sin", "SimplifiedLayerNormalization", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub",
        "Sum", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    )
)
FUSED: Final = frozenset(
    (
        "DynamicQuantizeMatMul", "FastGelu", "FusedMatMul", "Gelu", "MatMulIntegerToFloat", "MatMulNBits",
        "QuickGelu", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    )
)
# fmt: on
DOMAINS: Final = {"": OPERATORS, "ai.onnx": OPERATORS, "com.microsoft": FUSED}
BITS: Final = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
}

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_PLACE = 1, 2, 9, 13, 14
_TENSOR_NUMBERS: Final = {4, 5, 7, 10, 11}  # float_data, int32_data, int64_data, double_data, uint64_data
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_graph(data: bytes) -> None:
    """Refuse what a device must not load. Raises DecodeError, TooLargeError, with one line."""
    if len(data) > MAX_GRAPH_BYTES:
        msg = f"a graph of {len(data)} bytes, at most {MAX_GRAPH_BYTES} are accepted"
        raise TooLargeError(msg)
    graphs = 0
    for number, value in _fields(memoryview(data)):
        if number in {_MODEL_FUNCTIONS, _MODEL_TRAINING}:
            _refuse("brings functions or training information of its own")
        if number == _MODEL_GRAPH:
            graphs += 1
            _check_body(_part(value))
    if graphs != 1:
        _refuse(f"has {graphs} graphs, one is expected")


def _check_body(graph: memoryview) -> None:
    nodes = 0
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            nodes += 1
            _check_node(_part(value))
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_part(value))
        elif number == _GRAPH_SPARSE:
            _refuse("has sparse tensors")
    if nodes > MAX_NODES:
        _refuse(f"has {nodes} nodes, at most {MAX_NODES} are accepted")


def _check_node(node: memoryview) -> None:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(_part(value))
    if operator not in DOMAINS.get(domain, ()):
        name = f"{domain}.{operator}" if domain else operator
        _refuse(f"has the operator {name[:80]!r}, which no device runs")


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in {_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS}:
            _refuse("has a graph in an attribute: it may not branch or repeat itself")
        if number in {_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES}:
            _refuse("has sparse tensors")
        if number in {_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS}:
            _check_tensor(_part(value))


def _check_tensor(tensor: memoryview) -> None:
    """Its numbers lie in it, as many as its shape says."""
    dims: list[int] = []
    raw, packed, type_ = None, 0, 0
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_PLACE and value != 0):
            _refuse("has a tensor that lies in another file")
        if number == _TENSOR_DIMS:
            dims.extend(_numbers(value))
        elif number == _TENSOR_TYPE:
            type_ = value if isinstance(value, int) else 0
        elif number == _TENSOR_RAW:
            raw = len(_part(value))
        elif number in _TENSOR_NUMBERS:
            packed += len(value) if isinstance(value, memoryview) else 1
    if type_ not in BITS or len(dims) > MAX_DIMENSIONS:
        _refuse("has a tensor of a type or shape that no device has")
    count = math.prod(dims)
    if any(dim < 0 or dim > MAX_GRAPH_BYTES for dim in dims) or count > 8 * MAX_GRAPH_BYTES:
        _refuse("has a tensor larger than a graph may be")
    if raw is not None and raw != -(-count * BITS[type_] // 8):
        _refuse(f"has a tensor of {count} numbers in {raw} bytes")
    if raw is None and (packed < count if type_ not in {21, 22} else 2 * packed < count):
        _refuse(f"has a tensor of {count} numbers that are not there")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """A message's fields: numbers for varints, views for all others."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            _refuse("is no protobuf message")
        if size > end - at:
            _refuse("ends too early")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends; the highest bit says that more follows."""
    value, begin = 0, at
    while at < len(message) and at - begin < MAX_NUMBER_BYTES:
        byte = message[at]
        value |= (byte & 0x7F) << (7 * (at - begin))
        at += 1
        if byte < MORE:
            return value, at
    return _refuse("ends in the middle of a number")


def _numbers(value: int | memoryview) -> Iterator[int]:
    """One number, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _part(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        _refuse("is no ONNX graph")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_part(value)).decode("utf-8", "replace")


def _refuse(why: str) -> NoReturn:
    msg = f"the graph {why}"
    raise DecodeError(msg)
