"""One training step of torch + peft, measured in this process: the usual way, on a machine that could hold it.

    python -m benchmarks.peers.torch_peft MODEL_DIR --tokens 128 --batch 1 --steps 5 [--checkpointing]

LoRA r=8 on the query and value projections of every layer, AdamW, random tokens. Prints one JSON object: the peak
resident memory of the process (VmHWM), the median step time, and the loss.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import time

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM


def peak_bytes() -> int:
    """The largest resident memory this process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    if found is None:
        msg = "this kernel does not report VmHWM"
        raise RuntimeError(msg)
    return int(found[1]) * 1024


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM)
    tuned = get_peft_model(model, config).train()
    if arguments.checkpointing:
        tuned.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (arguments.batch, arguments.tokens))
    times_ms = []
    for _ in range(arguments.steps + 1):
        begin = time.perf_counter()
        loss = tuned(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times_ms.append((time.perf_counter() - begin) * 1e3)
    # The first step allocates and warms up, on both sides: it counts for memory, not for time.
    print(
        json.dumps(
            {
                "peak_bytes": peak_bytes(),
                "step_ms": statistics.median(times_ms[1:]),
                "loss": float(loss.detach()),
                "version": f"torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
