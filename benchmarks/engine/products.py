"""How long the products of a step take by themselves, at their fastest: what bounds every step on this machine.

    python -m benchmarks.engine.products MANIFEST TOKENS THREADS TURNS

Each frozen matrix of the level multiplies the tokens once on the way there and, above the lowest block that trains,
once on the way back: no exact step makes fewer products. Here they are made with nothing in between, of random
numbers, by onnxruntime with every matrix packed beforehand (its memory twice over) and by torch, in turn. Prints one
JSON object: `onnxruntime_ms` and `torch_ms`, medians over the turns of both ways together; and `operations`, a product
and a sum for each number of a matrix and each token.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edge_sdk.engine.artifact import Artifact, open_artifact
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.tensors import Array
from export.capture import IR_VERSION, OPSET

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report home from 1.29 on; any later call would be too late
import onnxruntime

Shape = tuple[int, int]
DIMENSIONS = 2  # of a matrix
OPERATIONS = 2  # a product and a sum


def main(arguments: list[str]) -> None:
    """Measure, print JSON."""
    end_with_parent()
    tokens, threads, turns = map(int, arguments[1:])
    shapes = products(open_artifact(pathlib.Path(arguments[0])))
    draw = np.random.default_rng(0)
    rows = {width: _drawn(draw, (tokens, width)) for width in {rows for rows, _ in shapes}}
    contenders = {
        "onnxruntime_ms": _with_onnxruntime(shapes, rows, threads),
        "torch_ms": _with_torch(shapes, rows, threads),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns + 1):
        for name, multiply in contenders.items():
            begin_s = time.perf_counter()
            multiply()
            times[name].append((time.perf_counter() - begin_s) * 1e3)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}  # the first touches the memory
    operations = OPERATIONS * tokens * sum(a * b for a, b in shapes)
    print(json.dumps({**medians, "operations": operations}))


def products(artifact: Artifact) -> list[Shape]:
    """The matrices that a step multiplies by, each as often as it does: on the way back in the other direction."""
    manifest = artifact.manifest
    above = [segment.name for segment in manifest.walked_back()][1:]  # the lowest owes nothing to those below it
    found = []
    for segment in manifest.walk[1:]:  # of an embedding only rows are read
        shapes = [array.shape for array in artifact.tensors(segment.tensors).values()]
        found += _both_ways(shapes, back=segment.name in above)
    if manifest.vocabulary_loss is not None:
        found += _both_ways([artifact.tensors(manifest.vocabulary_loss.tensors)["matrix"].shape], back=True)
    return found


def _both_ways(shapes: list[tuple[int, ...]], *, back: bool) -> list[Shape]:
    matrices = [(shape[0], shape[1]) for shape in shapes if len(shape) == DIMENSIONS]
    return matrices + ([(columns, rows) for rows, columns in matrices] if back else [])


def _with_onnxruntime(shapes: list[Shape], rows: dict[int, Array], threads: int) -> Callable[[], Any]:
    inputs = {width: _value(f"x{width}", x.shape) for width, x in rows.items()}
    draw = np.random.default_rng(1)
    matrices = [ir.Value(name=f"w{k}", const_value=ir.tensor(_drawn(draw, shape))) for k, shape in enumerate(shapes)]
    nodes = [ir.node("MatMul", [inputs[shape[0]], matrix]) for shape, matrix in zip(shapes, matrices, strict=True)]
    for node, shape in zip(nodes, shapes, strict=True):
        node.outputs[0].type, node.outputs[0].shape = inputs[shape[0]].type, ir.Shape(["rows", shape[1]])
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=nodes, initializers=matrices, opset_imports={"": OPSET}, name="products"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    data = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {inputs[width].name: x for width, x in rows.items()}
    return lambda: session.run(None, feeds)


def _with_torch(shapes: list[Shape], rows: dict[int, Array], threads: int) -> Callable[[], Any]:
    torch.set_num_threads(threads)
    draw = np.random.default_rng(1)
    inputs = {width: torch.from_numpy(x) for width, x in rows.items()}
    pairs = [(inputs[shape[0]], torch.from_numpy(_drawn(draw, shape))) for shape in shapes]
    return lambda: [x @ matrix for x, matrix in pairs]


def _value(name: str, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _drawn(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return draw.standard_normal(shape, np.float32)


if __name__ == "__main__":
    main(sys.argv[1:])
