"""One training step of onnxruntime-training 1.19.2, the last release, measured in a process of its own.

    python -m benchmarks.peers.ort_training MODEL_DIR --tokens 128 --batch 1 --steps 5 [--targets c_attn] [--lean]

The step of `benchmarks.peers.torch_peft` on the same rows, from the same adapter, with the same AdamW: what differs is
the runtime. Prints one JSON object (see measure.report). For causal language models whose graph stays under protobuf's
2 GB.
"""

from __future__ import annotations

import pathlib
import sys

from benchmarks.peers.staged import Peer, main

OPSET = 15  # the gradient builder knows no LayerNormalization, which exporters write from 17 on


def export(model: pathlib.Path, targets: list[str], batch: int, tokens: int, out: pathlib.Path) -> None:
    """Write the ONNX graph from `ids` to `logits` (see whole_rows.Logits), adapters in it, to `out`."""
    import torch

    from benchmarks.peers.whole_rows import Logits, example, inner_of

    torch.onnx.export(
        Logits(inner_of(model, targets), tokens),
        (example(batch, tokens),),
        out,
        dynamo=False,
        # A module in training mode (the outermost is) keeps equal tensors apart: every adapter's B begins as zeros.
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=OPSET,
        do_constant_folding=False,
        input_names=["ids"],
        output_names=["logits"],
    )


PEER = Peer("ort-training", "ort_training", export, {"lean": "without the runtime's memory arena and memory pattern"})

if __name__ == "__main__":
    sys.exit(main(PEER))
