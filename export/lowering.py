"""Graph passes between torch's exporter and the artifact. Each says what it ensures; none changes a result.

`lower` runs them all. What they are for: on a device, weights are graph inputs, which no runtime folds or pre-packs; a
Transpose of a weight is a copy of it at every step, and a scatter costs more than the product next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

MICROSOFT = "com.microsoft"  # onnxruntime's own operators, in every build of it
CONTRIB_VERSION = 1
PRODUCTS = frozenset({"MatMul", "Gemm"})


def lower(model: ir.Model) -> ir.Model:
    """All passes in order, in place."""
    Canonicalize()(simplify(model))
    return model


def simplify(model: ir.Model) -> ir.Model:
    """All passes but the last, which drops names and shapes: what is left may still be taken apart. In place."""
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        DropNeutral(),
        FoldTransposes(),
        common.IdentityEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
    return model


def restrict(model: ir.Model, keeps_input: Callable[[str], bool], keeps_output: Callable[[str], bool]) -> ir.Model:
    """A copy with some of the inputs and outputs only, and the nodes that those outputs need."""
    copy = ir.from_proto(ir.to_proto(model))
    graph = copy.graph
    outputs = [value for value in graph.outputs if keeps_output(value.name or "")]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    common.RemoveUnusedNodesPass()(copy)
    inputs = [value for value in graph.inputs if keeps_input(value.name or "")]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    return copy


def serialize(model: ir.Model) -> bytes:
    """The graph's bytes: equal graphs give equal bytes."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


class FoldTransposes(ir.passes.InPlacePass):
    """MatMul(a, Transpose(b)) -> FusedMatMul(a, b, transB=1), the same for a, and for Gemm: no transposed copy is made.

    Ensures: no product has an operand that only swaps the last two dimensions of something.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each product whose operand is a swap, looking through swaps of swaps."""
        changed = [_fold_product(node) for node in list(model.graph) if node.op_type in PRODUCTS]
        if any(changed):
            model.graph.opset_imports[MICROSOFT] = CONTRIB_VERSION
        return ir.passes.PassResult(model, modified=any(changed))

    def ensures(self, model: ir.Model) -> None:
        """No product is left with a swapped operand."""
        for node in model.graph:
            if node.op_type in PRODUCTS and any(_unswapped(value)[1] for value in node.inputs[:2]):
                msg = f"{node.name} still multiplies a transposed copy"
                raise ir.passes.PostconditionError(msg)


def _fold_product(node: ir.Node) -> bool:
    sources = [_unswapped(value) for value in node.inputs[:2]]
    for index, (source, _) in enumerate(sources):
        node.replace_input_with(index, source)
    if not any(swapped for _, swapped in sources):
        return False
    if node.op_type == "MatMul":
        node.op_type, node.domain, node.version = "FusedMatMul", MICROSOFT, CONTRIB_VERSION
    for attribute, (_, swapped) in zip(("transA", "transB"), sources, strict=True):
        if swapped:
            node.attributes[attribute] = ir.AttrInt64(attribute, 1 - node.attributes.get_int(attribute, 0))
    return True


def _unswapped(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The value under any swaps of its last two dimensions, and whether their number is odd."""
    swapped = False
    while value is not None and (node := value.producer()) is not None and node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", [])
        if not _is_swap(order):
            break
        value, swapped = node.inputs[0], not swapped
    return value, swapped


def _is_swap(order: Sequence[int]) -> bool:
    rank = len(order)
    return rank >= 2 and list(order) == [*range(rank - 2), rank - 1, rank - 2]  # noqa: PLR2004 - the two that swap


class DropNeutral(ir.passes.InPlacePass):
    """Remove what computes its own input: x * 1, x / 1, x ** 1.

    Torch's gradient formulas are full of them (x ** 2 gives 2 * x ** 1), and a power costs a call per element.
    Requires: constants are initializers.
    """

    NEUTRAL = frozenset({"Mul", "Div", "Pow"})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each by its first operand."""
        modified = False
        for node in list(model.graph):
            if node.op_type in self.NEUTRAL and _is_one(node.inputs[1]):
                source = node.inputs[0]
                if source is not None and not node.outputs[0].is_graph_output():
                    node.outputs[0].replace_all_uses_with(source)
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_one(value: ir.Value | None) -> bool:
    """A scalar constant 1: one with dimensions could broadcast its neighbour to another shape."""
    if value is None or value.const_value is None or len(value.const_value.shape) != 0:
        return False
    return bool(np.all(value.const_value.numpy() == 1))


class FreeRows(ir.passes.InPlacePass):
    """Let the embedding `matrix` have any number of rows: a device gives only those that a batch uses.

    Requires: `ids` are used for looking up rows of `matrix` and for their shape, `matrix` for that look-up, and no
    other input's name starts like its name. So ids that count within the rows given yield the same.
    Ensures: the first dimension of `matrix` is called rows.
    """

    def requires(self, model: ir.Model) -> None:
        """Neither input is used for anything else."""
        inputs = {value.name or "": value for value in model.graph.inputs}
        ids, matrix = inputs["ids"], inputs["matrix"]
        others = [use.node for use in (*ids.uses(), *matrix.uses()) if not _looks_up(use.node, matrix, ids)]
        if others := [node for node in others if node.op_type != "Shape" or node.inputs[0] is not ids]:
            msg = f"ids and the embedding matrix are used for more than a look-up: {others[0].op_type}"
            raise ir.passes.PreconditionError(msg)
        if names := [name for name in inputs if name.startswith("matrix") and name != "matrix"]:
            msg = f"{names[0]} would be taken for the embedding matrix"
            raise ir.passes.PreconditionError(msg)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name the dimension."""
        for value in model.graph.inputs:
            if value.name == "matrix" and value.shape is not None:
                value.shape = ir.Shape(["rows", *value.shape[1:]])
        return ir.passes.PassResult(model, modified=True)


def _looks_up(node: ir.Node, matrix: ir.Value, ids: ir.Value) -> bool:
    first = node.attributes.get_int("axis", 0) == 0
    return node.op_type == "Gather" and first and node.inputs[0] is matrix and node.inputs[1] is ids


class Canonicalize(ir.passes.InPlacePass):
    """Names, order and metadata that depend on the graph alone, so that equal models give equal bytes.

    Ensures: values between inputs and outputs are called v0, v1, ... and constants c0, c1, ...; no shapes of
    intermediate values (the runtime infers them), no doc strings, no paths of the exporting machine.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename and strip."""
        common.ClearMetadataAndDocStringPass()(model)
        graph = model.graph
        graph.name, graph.doc_string = "graph", None
        model.producer_name, model.producer_version, model.domain = "fedpeat", None, None
        _rename_constants(graph)
        fixed = {id(value) for value in (*graph.inputs, *graph.outputs)}
        inner = (value for node in graph for value in node.outputs if id(value) not in fixed)
        for index, value in enumerate(inner):
            value.name, value.shape, value.type = f"v{index}", None, None
        for index, node in enumerate(graph):
            node.name = f"n{index}"
        for value in graph.outputs:
            value.shape = None
        common.RemoveUnusedOpsetsPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _rename_constants(graph: ir.Graph) -> None:
    """Give initializers their names in the order of first use."""
    order = {id(value): None for node in graph for value in node.inputs if value is not None and value.is_initializer()}
    constants = {id(value): value for value in graph.initializers.values()}
    graph.initializers.clear()
    for index, key in enumerate(order):
        value = constants[key]
        value.name = f"c{index}"
        if value.const_value is None:
            msg = f"constant {value.name} has no value"
            raise ir.passes.PreconditionError(msg)
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        graph.initializers[value.name] = value
