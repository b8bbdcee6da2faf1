"""Fewer bits: how a frozen matrix is held, and how a graph reads it.

A matrix `w` (out, in) is held in parts, each with one row per row of `w`, so that rows can be looked up, and slices of
rows multiplied, without the others. With n, `in` rounded up to whole blocks of 32:

| bits | parts | w' |
|---|---|---|
| 16 | `w` float16 (out, in) | `w` |
| 8 | `w` int8 (out, in), `w.scale` float32 (out,) | scale[i] * w[i, j] |
| 4 | `w` uint8 (out, n / 2), `w.scale` float16 (out, n / 32) | scale[i, j // 32] * (nibble[i, j] - 8) |

Of a row of nibbles the first half are the low ones of its bytes and the second half the high ones, so that a graph
puts two halves side by side, where neighbours within a byte would have to be interleaved.

`STORAGES` says all this three times: on tensors, as the values that a graph computes with, and as nodes of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edge_sdk.wire.tensors import Array
from export.errors import ExportError

FULL_BITS = 32  # of a weight that is left as it is
LARGEST = 127  # of 8 bits: -128 is not used, the range stays symmetric
LEAST_BITS = 4  # of a weight
BLOCK = 32  # weights that share a scale, of 4 bits
MIDDLE = 8  # the nibble that means zero
FEW = 4  # weights of a block that tell most blocks which are on no grid


@dataclass(frozen=True, slots=True)
class Storage:
    """How a matrix is held in fewer bits: the parts' suffixes, and three functions that agree.

    `hold`: float32 (out, in) -> parts. `value`: parts and `in` -> float32 (out, in), to the bit what the graphs compute
    with. `read`: the same as nodes added to a tape, for any number of rows.
    """

    suffixes: tuple[str, ...]
    hold: Callable[[Array], tuple[Array, ...]]
    value: Callable[[Sequence[Array], int], Array]
    read: Callable[[ir.tape.Tape, Sequence[ir.Value], int], ir.Value]

    def names(self, name: str) -> tuple[str, ...]:
        """The parts of the matrix of that name."""
        return tuple(name + suffix for suffix in self.suffixes)


def is_quantized(shape: Sequence[object]) -> bool:
    """Whether a frozen tensor is held in fewer bits at such a level: matrices are, vectors are not worth it."""
    return len(shape) == 2  # noqa: PLR2004 - a matrix


def quantize_tensors(tensors: Mapping[str, Array], bits: int) -> dict[str, Array]:
    """Frozen tensors by input name -> the same with each matrix in its parts. Raises ExportError for one too large."""
    storage, found = STORAGES[bits], {}
    for name, array in tensors.items():
        if not is_quantized(array.shape):
            found[name] = array
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            parts = storage.hold(array)
        if not all(np.isfinite(part).all() for part in parts):
            msg = f"{name} reaches {np.abs(array).max():.3g}, which a level of {bits} bits cannot hold"
            raise ExportError(msg)
        found.update(zip(storage.names(name), parts, strict=True))
    return found


def whole_tensors(held: Mapping[str, Array], shapes: Mapping[str, Sequence[int]], bits: int) -> dict[str, Array]:
    """What `quantize_tensors` has made of tensors of these `shapes` -> the values that a graph computes with."""
    found = {}
    for name, shape in shapes.items():
        if bits == FULL_BITS or not is_quantized(shape):
            found[name] = held[name]
        else:
            storage = STORAGES[bits]
            found[name] = storage.value([held[part] for part in storage.names(name)], shape[1])
    return found


def held_bytes(tensors: Mapping[str, Array], bits: int) -> int:
    """Bytes of frozen tensors as a level of so many bits holds them: what `quantize_tensors` gives takes as many."""
    return sum(
        len(array) * sum(part.nbytes for part in STORAGES[bits].hold(np.zeros((1, array.shape[1]), np.float32)))
        if bits != FULL_BITS and is_quantized(array.shape)
        else array.nbytes
        for array in tensors.values()
    )


def rounded(matrix: Array, bits: int) -> Array:
    """A float32 matrix as the graphs of a level compute with it."""
    storage = STORAGES[bits]
    return storage.value(storage.hold(matrix), matrix.shape[1])


class QuantizeInputs(ir.passes.InPlacePass):
    """Turn matrix inputs into the parts that hold them in `bits`.

    Requires: each of `names` is a float32 graph input of two dimensions, its columns a number.
    Ensures: in its place are its parts; rows that are looked up are read after the look-up, so that an embedding is
    never read whole; all other uses share one reading. Constants are shared too.
    """

    def __init__(self, names: Iterable[str], bits: int) -> None:
        """Remember which inputs, and how they are held."""
        self.names, self.storage = tuple(names), STORAGES[bits]

    def requires(self, model: ir.Model) -> None:
        """Each name is a float32 matrix, and its width is known."""
        inputs = {value.name: value for value in model.graph.inputs}
        for name in self.names:
            value = inputs.get(name)
            if value is None or value.dtype != ir.DataType.FLOAT or _width(value) is None:
                msg = f"{name} is no float32 matrix of fixed width among the inputs"
                raise ir.passes.PreconditionError(msg)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite input by input."""
        for name in self.names:
            _quantize_input(model.graph, name, self.storage)
        share_constants(model)
        return ir.passes.PassResult(model, modified=bool(self.names))

    def ensures(self, model: ir.Model) -> None:
        """The parts of each name stand together."""
        names = tuple(value.name for value in model.graph.inputs)
        for name in self.names:
            parts, index = self.storage.names(name), names.index(name)
            if names[index : index + len(parts)] != parts:
                msg = f"{name} was not quantised"
                raise ir.passes.PostconditionError(msg)


def _width(value: ir.Value) -> int | None:
    """The columns of a matrix; None where there is no matrix, or the number is free."""
    shape = () if value.shape is None else tuple(value.shape)
    return shape[1] if is_quantized(shape) and isinstance(shape[1], int) else None


def _quantize_input(graph: ir.Graph, name: str, storage: Storage) -> None:
    index = next(k for k, value in enumerate(graph.inputs) if value.name == name)
    matrix = graph.inputs[index]
    width = _width(matrix)
    if matrix.shape is None or width is None:  # checked by the pass
        raise AssertionError
    parts = [
        ir.Value(
            name=part,
            type=ir.TensorType(ir.DataType.from_numpy(row.dtype)),
            shape=ir.Shape([matrix.shape[0], *row.shape[1:]]),
        )
        for part, row in zip(storage.names(name), storage.hold(np.zeros((1, width), np.float32)), strict=True)
    ]
    del graph.inputs[index]
    for k, part in enumerate(parts):
        graph.inputs.insert(index + k, part)
    uses = list(matrix.uses())
    for use in uses:
        if _looks_up_rows(use.node, use.idx):
            _read_rows_looked_up(graph, use.node, parts, storage, width)
    products = [use for use in uses if not _looks_up_rows(use.node, use.idx)]
    if products:
        tape = ir.tape.Tape()
        whole = storage.read(tape, parts, width)
        graph.insert_before(min((use.node for use in products), key=list(graph).index), tape.nodes)
        for use in products:
            use.node.replace_input_with(use.idx, whole)


def _looks_up_rows(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0


def _read_rows_looked_up(
    graph: ir.Graph, gather: ir.Node, parts: Sequence[ir.Value], storage: Storage, width: int
) -> None:
    """Look up the rows of every part, in one dimension whatever the indices have, and read those."""
    indices, tape = gather.inputs[1], ir.tape.Tape()
    flat = tape.op("Reshape", [indices, constant(tape, [-1])])
    found = storage.read(tape, [tape.op("Gather", [part, flat]) for part in parts], width)
    shape = tape.op("Concat", [tape.op("Shape", [indices]), constant(tape, [width])], {"axis": 0})
    substitute(graph, gather, tape, tape.op("Reshape", [found, shape]))


def substitute(graph: ir.Graph, node: ir.Node, tape: ir.tape.Tape, found: ir.Value) -> None:
    """Put the nodes of `tape` in the place of `node`, and their value `found` in that of its output."""
    old = node.outputs[0]
    found.name, found.type, old.name = old.name, old.type, None
    graph.insert_before(node, tape.nodes)
    old.replace_all_uses_with(found, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def share_constants(model: ir.Model) -> None:
    """Make equal constants one."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)


def constant(tape: ir.tape.Tape, value: Array | Sequence[int]) -> ir.Value:
    """A constant: an array, or a list as int64."""
    return tape.op("Constant", [], {"value": ir.tensor(value if isinstance(value, np.ndarray) else np.array(value))})


def _hold_half(matrix: Array) -> tuple[Array, ...]:
    return (matrix.astype(np.float16),)


def _half_value(parts: Sequence[Array], _width: int) -> Array:
    return parts[0].astype(np.float32)


def _read_half(tape: ir.tape.Tape, parts: Sequence[ir.Value], _width: int) -> ir.Value:
    return tape.op("Cast", parts, {"to": ir.DataType.FLOAT})


def _hold_rows(matrix: Array) -> tuple[Array, ...]:
    """One symmetric scale per row: the largest |w| is 127."""
    scale = _usable(np.abs(matrix).max(axis=1) / np.float32(LARGEST))
    return np.rint(matrix / scale[:, None]).clip(-LARGEST, LARGEST).astype(np.int8), scale


def _rows_value(parts: Sequence[Array], _width: int) -> Array:
    quantized, scale = parts
    return np.asarray(quantized.astype(np.float32) * scale[:, None])


def _read_rows(tape: ir.tape.Tape, parts: Sequence[ir.Value], _width: int) -> ir.Value:
    return tape.op("DequantizeLinear", parts, {"axis": 0})


def _hold_blocks(matrix: Array) -> tuple[Array, ...]:
    """What is on a grid of some scale already (`export.compress.calibrate` puts it there) is held as it is.

    All else by the rule of ggml's Q4_0: the weight that is largest in magnitude is -8, so the scale has a sign.
    https://github.com/ggml-org/ggml, quantize_row_q4_0_ref. Of normally distributed weights the error is 11% smaller
    than with a symmetric range of -7 to 7.
    """
    rows, width = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -width % BLOCK))).reshape(-1, BLOCK)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = _scale(extreme, -MIDDLE)
    few, left = np.ascontiguousarray(blocks[:, :FEW]), np.ones(len(blocks), np.bool_)
    for nibble in (*range(-MIDDLE, 0), *range(1, MIDDLE)):  # of the extreme, which a grid's scale follows from
        found = _scale(extreme, nibble)
        some = np.flatnonzero(left & _is_held(few, found))
        held = some[_is_held(blocks[some], found[some])]
        scale[held], left[held] = found[held], False
    nibbles = _nibbles(blocks, scale) + MIDDLE
    low, high = np.split(nibbles.astype(np.uint8).reshape(rows, -1), 2, axis=1)
    return low | high << 4, scale.reshape(rows, -1)


def _scale(extreme: Array, nibble: int) -> Array:
    return _usable((extreme / np.float32(nibble)).astype(np.float16))


def _nibbles(blocks: Array, scale: Array) -> Array:
    return np.rint(blocks / scale.astype(np.float32)).clip(-MIDDLE, MIDDLE - 1)


def _is_held(blocks: Array, scale: Array) -> Array:
    """Which blocks are, to the bit, what nibbles of their scale stand for."""
    return np.asarray((_nibbles(blocks, scale) * scale.astype(np.float32) == blocks).all(axis=1))


def _blocks_value(parts: Sequence[Array], width: int) -> Array:
    packed, scale = parts
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - MIDDLE
    blocks = nibbles.reshape(len(packed), -1, BLOCK) * scale.astype(np.float32)[:, :, None]
    return blocks.reshape(len(packed), -1)[:, :width]


def _read_blocks(tape: ir.tape.Tape, parts: Sequence[ir.Value], width: int) -> ir.Value:
    """Each block becomes a row, for a scale per row is read much faster than DequantizeLinear's own `block_size`."""
    packed, scale = parts
    low = tape.op("BitwiseAnd", [packed, constant(tape, np.array(15, np.uint8))])
    high = tape.op("BitShift", [packed, constant(tape, np.array(4, np.uint8))], {"direction": "RIGHT"})
    nibbles = tape.op("Concat", [low, high], {"axis": 1})
    scales = tape.op("Cast", [tape.op("Reshape", [scale, constant(tape, [-1])])], {"to": ir.DataType.FLOAT})
    middle = {"value": ir.tensor(np.array([MIDDLE], np.uint8))}
    middles = tape.op("ConstantOfShape", [tape.op("Shape", [scales])], middle)
    blocks = tape.op("Reshape", [nibbles, constant(tape, [-1, BLOCK])])
    values = tape.op("DequantizeLinear", [blocks, scales, middles], {"axis": 0})
    whole = tape.op("Reshape", [values, constant(tape, [-1, width + -width % BLOCK])])
    if width % BLOCK == 0:
        return whole
    return tape.op("Slice", [whole, *(constant(tape, [n]) for n in (0, width, 1))])


def _usable(scale: Array) -> Array:
    """Scales, with 1 for those of zeros and those too small to be held in full: such weights become zeros."""
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, scale.dtype.type(1), scale)


STORAGES: Mapping[int, Storage] = {
    16: Storage(("",), _hold_half, _half_value, _read_half),
    8: Storage(("", ".scale"), _hold_rows, _rows_value, _read_rows),
    4: Storage(("", ".scale"), _hold_blocks, _blocks_value, _read_blocks),
}
