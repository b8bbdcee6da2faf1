"""The environment of a process that trains: what has to be set before it starts, and why."""

from __future__ import annotations

import os

from edge_sdk.wire.lifeline import parent_environment


def training_environment(threads: int) -> dict[str, str]:
    """This process's environment, for a child that trains with `threads` threads.

    - no telemetry: onnxruntime reads the variable when it is imported, and any later call is too late;
    - freed memory, the runtime's arena apart, goes back to the kernel at once, so that a peak can be predicted; what
      other thresholds keep is measured in docs/adr/0007;
    - it ends with this process, see `edge_sdk.wire.lifeline`;
    - NumPy's own threads would take memory for products that onnxruntime makes.
    """
    return {
        **os.environ,
        **parent_environment(),
        "ORT_DISABLE_TELEMETRY": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",  # leave nothing behind outside the store
    }
