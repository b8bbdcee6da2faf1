"""What the demo and the benchmarks study: the models, their emulator levels, and the artifacts built from them."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import assets

TOKENS = 128
ADAPTER: dict[str, Any] = {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
LEVELS: list[dict[str, Any]] = [
    {"name": "fp32", "bits": 32, "layers": None, "train_last": None},
    {"name": "int8", "bits": 8, "layers": None, "train_last": None},
    {"name": "int8-last6", "bits": 8, "layers": None, "train_last": 6},
]


def smollm2_artifact(model: pathlib.Path) -> pathlib.Path:
    """The demo's three levels of SmolLM2, built once and kept in the cache folder.

    Raises RuntimeError with the exporter's own words when the build fails.
    """
    request = {"model": str(model), "task": "causal-lm", "adapter": ADAPTER, "levels": LEVELS, "labels": []}
    request |= {"tokens": TOKENS, "parity": True, "seed": 0}
    digest = hashlib.sha256(json.dumps([request, _source_digest()], sort_keys=True).encode()).hexdigest()
    out = assets.cache_folder() / "artifacts" / digest[:16]
    if not out.is_dir():
        _build(request, out)
    return out


def _source_digest() -> str:
    """Changes with the exporter and the engine, whose costs an artifact carries."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("export/**/*.py"), *root.glob("edge_sdk/**/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(request: dict[str, Any], out: pathlib.Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = pathlib.Path(name)
        asked = folder / "request.json"
        asked.write_text(json.dumps({**request, "out": str(folder / "artifact")}), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "export.cli", "build", str(asked)], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["the export failed without a word"])[-1])
        shutil.move(folder / "artifact", out)
