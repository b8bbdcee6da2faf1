"""A level of a model, adapter and loss included, as one ONNX graph from token ids to the mean loss in nats.

onnxruntime-training's gradient builder is older than our segments: it takes operators of opset 15, as torch's exporter
of that time writes them. From opset 17 on that one writes a LayerNormalization whose gradient the builder cannot make,
and the newer exporter writes nothing that old.

Weights are inputs while torch traces, and get their values afterwards: else torch would merge tensors that happen to
be equal, as the adapters' Bs are before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from edge_sdk.wire.manifest import IGNORED, LevelSpec, TaskType
from edge_sdk.wire.tensors import Array
from export.adapters import Named, named
from export.capture import Sizes, Tensors
from export.compress.quantize import (
    FULL_BITS,
    QuantizeInputs,
    constant,
    is_quantized,
    quantize_tensors,
    share_constants,
    substitute,
)
from export.errors import ExportError
from export.foundation import quiet
from export.kinds import FACTORS
from export.lowering import Canonicalize
from export.parts import Part
from export.program import Adapted, places, vocabulary_matrix
from export.structures import sizes_for

OPSET, IR_VERSION = 15, 8
BITS = (32, 16, 8)  # 4 are unpacked by BitwiseAnd, of opset 18
LARGEST_BYTES = 2**31 - 2**24  # a protobuf message holds 2 GiB; the nodes take some of it


@dataclass(frozen=True, slots=True)
class Whole:
    """The graph, and the names of its tensors (`block.3/mlp.up_proj.weight`), which are its initializers.

    Inputs are `ids` and `attention_mask` (batch, tokens) int64, the latter 1 where a token is, and for a classifier
    `labels` (batch,) int64, or (batch, tokens), IGNORED where a token has none. The output is `loss`. `logits` is a
    value on the way: a row for each token of the batch, or for each of its rows.
    """

    model: ir.Model
    trained: tuple[str, ...]
    frozen: tuple[str, ...]


def require_bits(bits: int) -> None:
    """Raise ExportError for a level whose matrices operators of opset 15 cannot read."""
    if bits not in BITS:
        msg = f"{bits} bits are not supported for ort-training; supported are {', '.join(map(str, BITS))}"
        raise ExportError(msg)


def require_text(task: TaskType) -> None:
    """Raise ExportError for images: this graph begins at token ids."""
    if task is TaskType.IMAGE_CLASSIFICATION:
        msg = f"{task.value} is not supported for ort-training, only what reads text"
        raise ExportError(msg)


def require_factors(kind: str) -> None:
    """Raise ExportError for an adapter that is proved on our own runtime alone."""
    if kind not in FACTORS:
        msg = f"adapters of kind {kind} are not supported for ort-training; supported are {', '.join(FACTORS)}"
        raise ExportError(msg)


def whole_graph(adapted: Adapted, level: LevelSpec) -> Whole:
    """The graph of `level`, for any batch and any number of tokens.

    Raises ExportError for bits that this target does not have, and for more than one file can hold.
    """
    require_bits(level.bits)
    chain = _chain(adapted, level)
    base = {name: entry.value.detach().numpy() for name, entry in chain.tensors.items() if not entry.trained}
    held = base if level.bits == FULL_BITS else quantize_tensors(base, level.bits)
    # The adapter is held in full in layers that do not train, too.
    values = held | {name: entry.value.detach().numpy() for name, entry in chain.tensors.items() if entry.trained}
    _require_one_file(values)
    model = _trace(chain, sizes_for(adapted.base))
    _transpose_in_products(model.graph)
    common.RemoveUnusedNodesPass()(model)  # the transposes
    if level.bits != FULL_BITS:
        QuantizeInputs((name for name, array in base.items() if is_quantized(array.shape)), level.bits)(model)
    share_constants(model)
    Canonicalize()(model)
    _fill(model.graph, values)
    return Whole(model, chain.trained, tuple(name for name in values if name not in chain.trained))


@dataclass(frozen=True, slots=True)
class _Chain:
    """A level's `parts` by segment in walking order, its `tensors` by global name, and which of them train.

    `matrix` is the name of the projection to the vocabulary; empty where the last part, `head`, classifies.
    """

    adapted: Adapted
    parts: Mapping[str, Part]
    tensors: Mapping[str, Named]
    trained: tuple[str, ...]
    matrix: str

    def run(self, given: Tensors) -> Tensors:
        """`loss` and `logits` of a batch, all tensors given by name."""
        family, mask, x = self.adapted.foundation.family, given["attention_mask"], given["ids"]
        context = {**family.context(self.adapted.backbone, mask), "attention_mask": mask}
        for segment, part in self.parts.items():
            tensors = {name: given[f"{segment}/{name}"] for name in named(part)}
            x = _called(part, x, context, tensors)
        if not self.matrix:
            logits = x.flatten(0, 1) if self.adapted.foundation.spec.task.labels_tokens else x
            return {"loss": cross_entropy(logits, given["labels"].flatten(), ignore_index=IGNORED), "logits": logits}
        logits = (x @ given[self.matrix].T).flatten(0, 1)
        following = given["ids"][:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
        labels = pad(following, (0, 1), value=IGNORED).flatten()
        return {"loss": cross_entropy(logits, labels, ignore_index=IGNORED), "logits": logits}


def _chain(adapted: Adapted, level: LevelSpec) -> _Chain:
    walk = [place for place in places(adapted) if place.layer is None or place.layer in level.layers]
    parts = {place.segment: place.part for place in walk}
    trains = {place.segment for place in walk if place.layer in level.trained_layers} | {"head"}
    make_head = adapted.foundation.family.heads[adapted.foundation.spec.task]
    parts |= {} if make_head is None else {"head": make_head(adapted.base)}
    tensors = {f"{s}/{name}": entry for s, part in parts.items() for name, entry in named(part).items()}
    trained = tuple(name for name, entry in tensors.items() if entry.trained and name.partition("/")[0] in trains)
    matrix = ""
    if make_head is None:
        values, tied = vocabulary_matrix(adapted)
        matrix = "embed/matrix" if tied else "vocabulary/matrix"
        tensors.setdefault(matrix, Named("", values, trained=False))
    return _Chain(adapted, parts, tensors, trained, matrix)


def _called(part: Part, x: Tensor, context: Tensors, tensors: Tensors) -> Tensor:
    """What the part makes of `x` with other tensors for its parameters: `torch.func` refuses to while torch traces."""
    slots = []
    for name, entry in named(part).items():
        owner, _, attribute = entry.path.rpartition(".")
        slots.append((part.module.get_submodule(owner)._parameters, attribute, tensors[name]))  # noqa: SLF001
    before = [slot[attribute] for slot, attribute, _ in slots]
    try:
        for slot, attribute, tensor in slots:
            slot[attribute] = tensor  # type: ignore[assignment]  # no parameter, and read as one
        arguments, options = part.arguments(x, context)
        result = part.module(*arguments, **options)
    finally:
        for (slot, attribute, _), value in zip(slots, before, strict=True):
            slot[attribute] = value
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def _require_one_file(tensors: Mapping[str, Array]) -> None:
    size = sum(array.nbytes for array in tensors.values())
    if size > LARGEST_BYTES:
        msg = (
            f"this level's tensors take {size / 1e6:.0f} MB, and an ONNX file of ort-training holds "
            f"{LARGEST_BYTES / 1e6:.0f} MB: give fewer --bits or --layers"
        )
        raise ExportError(msg)


class _Flat(nn.Module):
    """torch's exporter takes modules; this one only calls. It is in evaluation mode, as the parts that it calls are."""

    def __init__(self, chain: _Chain, names: tuple[str, ...]) -> None:
        super().__init__()
        self._chain, self._names = chain, names
        self.eval()

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        found = self._chain.run(dict(zip(self._names, values, strict=True)))
        return found["loss"], found["logits"]


def _trace(chain: _Chain, sizes: Sizes) -> ir.Model:
    """The graph with all tensors as inputs, and `logits` as its second output."""
    ids = torch.zeros(sizes.batch, sizes.tokens, dtype=torch.int64)
    batch = {"ids": ids, "attention_mask": torch.ones_like(ids)}
    if not chain.matrix:
        per_token = chain.adapted.foundation.spec.task.labels_tokens
        batch["labels"] = torch.zeros(ids.shape if per_token else ids.shape[:1], dtype=torch.int64)
    given = batch | {name: entry.value.detach() for name, entry in chain.tensors.items()}
    file: Any = BytesIO()  # taken by that exporter, and not declared
    with quiet(), torch.no_grad():
        torch.onnx.export(
            _Flat(chain, tuple(given)),
            tuple(given.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=False,
            input_names=list(given),
            output_names=["loss", "logits"],
            dynamic_axes={name: dict(enumerate(("batch", "tokens")[: value.ndim])) for name, value in batch.items()},
        )
    model = ir.from_proto(onnx.load_model_from_string(file.getvalue()))
    model.ir_version = IR_VERSION
    return model


def _transpose_in_products(graph: ir.Graph) -> None:
    """MatMul(x, Transpose(w)) -> Gemm(x, w, transB=1), on rows, for each weight w.

    Behind a DequantizeLinear 1.19.2 moves a Transpose ahead, and quantises anew what it moved: int8 to uint8, an error.
    Its gradient builder knows no FusedMatMul, which needs no rows.
    """
    weights = {id(value): value for value in graph.inputs}
    for node in list(graph):
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        x, weight = node.inputs[0], weights.get(id(transpose.inputs[0]))
        if weight is None or weight.shape is None or not is_quantized(tuple(weight.shape)):
            continue
        outputs, inputs = weight.shape.numpy()
        tape = ir.tape.Tape()
        rows = tape.op("Reshape", [x, constant(tape, [-1, inputs])])
        product = tape.op("Gemm", [rows, weight], {"transB": 1})
        shape = tape.op("Concat", [tape.op("Shape", [x], {"end": -1}), constant(tape, [outputs])], {"axis": 0})
        substitute(graph, node, tape, tape.op("Reshape", [product, shape]))


def _fill(graph: ir.Graph, values: Mapping[str, Array]) -> None:
    """Give the tensors their values; the loss keeps the logarithm of its softmax, from which its gradient is made.

    `logits` were an output so that they kept their name.
    """
    inputs = list(graph.inputs)
    graph.inputs.clear()
    for value in inputs:
        name = value.name or ""
        if name in values:
            value.const_value = ir.tensor(values[name], name=name)
            graph.register_initializer(value)
        else:
            graph.inputs.append(value)
    del graph.outputs[1:]
    (loss,) = graph.outputs
    loss.shape = ir.Shape([])
    node = loss.producer()
    if node is None or node.op_type != "SoftmaxCrossEntropyLoss":  # as torch's exporter writes it
        raise AssertionError
    node.resize_outputs(2)
    node.outputs[1].name = "log_prob"
