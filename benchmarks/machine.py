"""What a published number was measured on, and a process measured from outside."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import psutil

from edge_sdk.wire.errors import last_line

PACKAGES = ("fedpeat", "onnxruntime", "numpy", "torch", "transformers", "peft")


def machine() -> dict[str, Any]:
    """The machine and the versions, for the JSON beside each number."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def measured(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON object that `python -m module arguments` prints last, from a process of its own.

    Raises RuntimeError with the process's last words when it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = last_line(done.stderr, "no output")
        msg = f"{' '.join(command[1:])} ended with {done.returncode}: {last}"
        raise RuntimeError(msg)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def write_json(path: pathlib.Path, value: object) -> None:
    """Indented JSON that ends in a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _lines(path: str) -> list[str]:
    return pathlib.Path(path).read_text(encoding="utf-8").splitlines()
