"""Graph passes between torch's exporter and the artifact. Each says what it ensures; none changes a result.

`lower` runs them all. What they are for: on a device, weights are graph inputs, which no runtime folds or pre-packs; a
Transpose of a weight is a copy of it at every step, and a scatter costs more than the product next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

MICROSOFT = "com.microsoft"  # onnxruntime's own operators, in every build of it
CONTRIB_VERSION = 1
PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm"})


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
        ProductsOfAnyRank(),
        FoldTransposes(),  # what lay behind a Reshape
        FoldFactors(),
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

    A product that is only used transposed becomes the product of its factors the other way round.
    Ensures: no product has an operand that only swaps the last two dimensions of something.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each product whose operand is a swap, looking through swaps of swaps."""
        products = [node for node in model.graph if node.op_type in PRODUCTS]
        changed = [_fold_product(node) for node in products] + [_turn_product(node) for node in products]
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
    _set_swaps(node, [_swaps(node)[k] != swapped for k, (_, swapped) in enumerate(sources)])
    return True


def _turn_product(node: ir.Node) -> bool:
    """(a b)^T -> b^T a^T, where nothing else uses a b."""
    product = node.outputs[0]
    users = [use.node for use in product.uses()]
    if product.is_graph_output() or len(users) != 1 or users[0].op_type != "Transpose" or len(node.inputs) != 2:  # noqa: PLR2004 - no bias
        return False
    (transpose,) = users
    if not _is_swap(transpose.attributes.get_ints("perm", [])) or transpose.outputs[0].is_graph_output():
        return False
    left, right = node.inputs
    if any(_rank(value) != _rank(product) for value in node.inputs):
        return False
    swap_left, swap_right = _swaps(node)
    node.replace_input_with(0, right)
    node.replace_input_with(1, left)
    _set_swaps(node, [not swap_right, not swap_left])
    product.shape = transpose.outputs[0].shape
    transpose.outputs[0].replace_all_uses_with(product)
    return True


def _swaps(node: ir.Node) -> list[bool]:
    """Whether a product swaps its left and its right operand's last two dimensions."""
    return [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]


def _set_swaps(node: ir.Node, swaps: Sequence[bool]) -> None:
    for name, swapped in zip(("transA", "transB"), swaps, strict=True):
        node.attributes.pop(name, None)
        if swapped or node.op_type == "Gemm":
            node.attributes[name] = ir.AttrInt64(name, int(swapped))
    if node.op_type != "Gemm":
        fused = (MICROSOFT, "FusedMatMul", CONTRIB_VERSION)
        node.domain, node.op_type, node.version = fused if node.attributes else ("", "MatMul", None)


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


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


class ProductsOfAnyRank(ir.passes.InPlacePass):
    """MatMul(Reshape(a), b) reshaped back -> MatMul(a, b): torch multiplies in two or three dimensions, ONNX in any.

    A Reshape copies nothing, but it costs a call, needs its shape computed, and hides what could be folded.
    Requires: values have shapes, in which equal symbols are equal numbers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite product by product: one's result is the next one's operand."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Reshape" and _same_shape(node.inputs[0], node.outputs[0]):
                modified |= _replace(node.outputs[0], node.inputs[0])
            elif _is_product(node):
                modified |= _raise_rank(model.graph, node)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _raise_rank(graph: ir.Graph, node: ir.Node) -> bool:
    left, right = node.inputs
    product = node.outputs[0]
    if left is None or right is None or product.shape is None or product.is_graph_output():
        return False
    if _rank(right) == 2:  # noqa: PLR2004 - a matrix for all
        source = _merged(left, keep=1)
        if source is None or source.shape is None or _swaps(node)[0]:
            return False
        shape = ir.Shape([*source.shape[:-1], product.shape[-1]])
    else:
        source, other = _merged(left, keep=2), _merged(right, keep=2)
        if source is None or other is None or source.shape is None or other.shape is None:
            return False
        shape = ir.Shape([*source.shape[:-2], *product.shape[-2:]])
        if source.shape[:-2] != other.shape[:-2] or not all(
            use.node.op_type == "Reshape" and use.node.outputs[0].shape == shape for use in product.uses()
        ):
            return False
        node.replace_input_with(1, other)
    node.replace_input_with(0, source)
    merged, product.shape = product.shape, shape
    users = [
        use for use in product.uses() if not _same_shape(product, use.node.outputs[0]) or use.node.op_type != "Reshape"
    ]
    for use in product.uses():
        if use not in users:
            _replace(use.node.outputs[0], product)
    if users:
        flat = _reshaped(graph, node, merged)
        for use in users:
            use.node.replace_input_with(use.idx, flat)
    return True


def _merged(value: ir.Value, keep: int) -> ir.Value | None:
    """What `value` is a Reshape of that merges dimensions and leaves the last `keep` as they are."""
    node = value.producer()
    source = None if node is None or node.op_type != "Reshape" else node.inputs[0]
    if source is None or source.shape is None or value.shape is None:
        return None
    fits = len(source.shape) > len(value.shape) == keep + 1 and source.shape[-keep:] == value.shape[-keep:]
    return source if fits else None


def _reshaped(graph: ir.Graph, node: ir.Node, shape: ir.Shape) -> ir.Value:
    """The product as rows, as it was before, for those who want rows."""
    width = ir.tensor(np.array([-1, shape[-1]], np.int64))
    rows = ir.Value(name=f"{node.outputs[0].name}_rows", const_value=width, type=ir.TensorType(ir.DataType.INT64))
    rows.shape = ir.Shape([2])
    graph.register_initializer(rows)
    reshape = ir.node("Reshape", [node.outputs[0], rows])
    graph.insert_after(node, reshape)
    reshape.outputs[0].shape, reshape.outputs[0].type = shape, node.outputs[0].type
    return reshape.outputs[0]


def _same_shape(one: ir.Value | None, other: ir.Value) -> bool:
    return one is not None and one.shape is not None and one.shape == other.shape


def _replace(value: ir.Value, source: ir.Value | None) -> bool:
    if source is None or value.is_graph_output():
        return False
    value.replace_all_uses_with(source)
    return True


class FoldFactors(ir.passes.InPlacePass):
    """c * MatMul(a, b) and MatMul(c * a, b) -> FusedMatMul(a, b, alpha=c): in a product a constant factor is free.

    Requires: constants are initializers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each multiplication by a scalar that all its users, or its one source, can make."""
        modified = False
        for node in list(model.graph):
            factor = _factor(node)
            if factor is None or (products := _multipliers(node)) is None:
                continue
            for product in products:
                alpha = product.attributes.get_float("alpha", 1.0) * factor
                product.attributes["alpha"] = ir.AttrFloat32("alpha", alpha)
                product.domain, product.op_type, product.version = MICROSOFT, "FusedMatMul", CONTRIB_VERSION
            modified |= _replace(node.outputs[0], node.inputs[0])
        if modified:
            model.graph.opset_imports[MICROSOFT] = CONTRIB_VERSION
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _factor(node: ir.Node) -> float | None:
    """What `node` multiplies its first operand by, if that is one number for all."""
    constant = node.inputs[1].const_value if node.op_type == "Mul" and node.inputs[1] is not None else None
    if constant is None or len(constant.shape) != 0 or node.outputs[0].is_graph_output():
        return None
    return float(constant.numpy())


def _multipliers(node: ir.Node) -> list[ir.Node] | None:
    """The products that can take over the factor of `node`: what it scales, or else all who use it."""
    source = node.inputs[0]
    product = None if source is None else source.producer()
    if product is not None and _is_product(product) and len(product.outputs[0].uses()) == 1:
        return [product]
    users = list(_users(node.outputs[0]))
    return users if all(_is_product(user) for user in users) else None


def _users(value: ir.Value) -> Iterator[ir.Node]:
    """Who computes with `value`, in whatever shape."""
    for use in value.uses():
        found = use.node.outputs[0]
        if use.node.op_type == "Reshape" and use.idx == 0 and not found.is_graph_output():
            yield from _users(found)
        else:
            yield use.node


def _is_product(node: ir.Node) -> bool:
    return node.op_type in {"MatMul", "FusedMatMul"}


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
