"""What all peers measure, and how they say it. Standard library only: it must not show in anyone's memory."""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import re
import statistics
import sys
import time
from collections.abc import Callable

RANK, ALPHA = 8, 16  # of LoRA
RATE, BETAS, EPSILON, DECAY = 1e-4, (0.9, 0.999), 1e-8, 0.01  # of AdamW; torch's defaults but for the rate
IGNORED = -100  # no loss at this label


def peak_bytes() -> int:
    """The largest resident memory this process had since it began, or since `forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        msg = "this kernel does not report VmHWM"
        raise RuntimeError(msg)
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Let the kernel count the peak anew, from what is resident now (proc_pid_clear_refs(5))."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def random_rows(vocabulary: int, batch: int, tokens: int) -> list[list[int]]:
    """`batch` full rows of `tokens` random token ids, the same for every peer."""
    draw = random.Random(0)  # noqa: S311 - tokens, not secrets
    return [[draw.randrange(vocabulary) for _ in range(tokens)] for _ in range(batch)]


def report(step: Callable[[], float], steps: int, version: str, threads: int) -> None:
    """Do `step` (one update; returns the loss before it) once and then `steps` times, and print one JSON object.

    `peak_bytes` counts all that this process ever did, and `step_peak_bytes` the steps alone, as if the model had come
    into memory for nothing; `step_ms` is the median without the first step, which allocates and warms up; `first_loss`
    and `loss` are the first and the last step's, in nats.
    """
    loaded = peak_bytes()
    forget_peak()
    times_ms, losses = [], []
    for done in range(steps + 1):
        begin = time.perf_counter()
        losses.append(step())
        times_ms.append((time.perf_counter() - begin) * 1e3)
        print(f"step {done} of {steps}: {times_ms[-1]:.0f} ms, loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    stepped = peak_bytes()
    found = {"peak_bytes": max(loaded, stepped), "step_peak_bytes": stepped, "step_ms": statistics.median(times_ms[1:])}
    print(json.dumps(found | {"first_loss": losses[0], "loss": losses[-1], "version": version, "threads": threads}))


def staged_arguments(*flags: str) -> argparse.Namespace:
    """The command line of a peer's stage, as benchmarks.peers.staged writes it; `flags` belong to the stage `step`."""
    parser = argparse.ArgumentParser()
    stages = parser.add_subparsers(dest="stage", required=True)
    make = stages.add_parser("artifacts")
    make.add_argument("forward", type=pathlib.Path)
    make.add_argument("folder", type=pathlib.Path)
    train = stages.add_parser("step")
    train.add_argument("folder", type=pathlib.Path)
    for name in ("vocabulary", "tokens", "batch", "steps"):
        train.add_argument(f"--{name}", type=int, required=True)
    for name in flags:
        train.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()
