"""One training step of ExecuTorch's training module 1.5.1, measured in a process of its own.

    python -m benchmarks.peers.executorch MODEL_DIR --tokens 128 --batch 1 --steps 5 [--targets c_attn]

The forward and backward pass of `benchmarks.peers.torch_peft` on the same rows, from the same adapter. The module has
no AdamW, so the update is SGD: the first loss is the others', the last is not. Its Python interface hands out torch's
tensors, so torch is in the peak. Prints one JSON object (see measure.report).
"""

from __future__ import annotations

import pathlib
import sys

from benchmarks.peers.staged import Peer, main


def export(model: pathlib.Path, targets: list[str], batch: int, tokens: int, out: pathlib.Path) -> None:
    """Write torch's program from `ids` and `labels` to the loss (see whole_rows.Loss), adapters in it, to `out`."""
    import torch

    from benchmarks.peers.whole_rows import Loss, example, inner_of

    ids = example(batch, tokens)
    program = torch.export.export(Loss(inner_of(model, targets), tokens), (ids, ids.flatten()), strict=False)
    with out.open("wb") as file:
        torch.export.save(program, file)


PEER = Peer("executorch", "executorch", export)

if __name__ == "__main__":
    sys.exit(main(PEER))
