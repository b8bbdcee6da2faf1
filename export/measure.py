"""What a level costs, measured: the device's own probe, in a process of its own, on the exporting machine."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from edge_sdk.wire import codec
from edge_sdk.wire.errors import DecodeError, last_line
from edge_sdk.wire.lifeline import parent_environment
from edge_sdk.wire.manifest import Cost, Manifest
from export.errors import ExportError
from export.foundation import first_line


@dataclass(frozen=True, slots=True)
class Measured:
    """What the probe prints: costs per structure, and the predicted peak of the leanest plan."""

    costs: tuple[Cost, ...]
    needs_bytes: int


def measure(manifest_path: pathlib.Path, manifest: Manifest) -> Manifest:
    """The manifest with measured costs; `manifest_path` lies beside its blobs. Raises ExportError."""
    command = [sys.executable, "-m", "edge_sdk.cli", "probe", str(manifest_path)]
    shape = ["--tokens", str(manifest.reference_tokens), "--costs-only"]
    environment = {**os.environ, **parent_environment()}
    done = subprocess.run([*command, *shape], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        why = last_line(done.stderr, "it said nothing")
        msg = f"measuring level {manifest.level.name} failed ({done.returncode}): {why}"
        raise ExportError(msg)
    try:
        found = codec.from_plain(Measured, json.loads(done.stdout), "probe")
    except (ValueError, DecodeError) as error:
        msg = f"measuring level {manifest.level.name} gave no costs: {first_line(error)}"
        raise ExportError(msg) from error
    return dataclasses.replace(manifest, costs=found.costs, needs_bytes=found.needs_bytes)
