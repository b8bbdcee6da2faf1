"""The device's side of fedpeat: trains an adapter inside a memory budget, without PyTorch.

What is exported here is loaded when it is first asked for: `import edge_sdk.wire` loads no runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.engine.artifact import Artifact, open_artifact
    from edge_sdk.local import Evaluation, StepReport, Training, evaluate, train
    from edge_sdk.memory import parse_size

__all__ = [
    "Artifact",
    "Evaluation",
    "StepReport",
    "Training",
    "evaluate",
    "open_artifact",
    "parse_size",
    "train",
]

_HOMES = {
    "Artifact": "edge_sdk.engine.artifact",
    "Evaluation": "edge_sdk.local",
    "StepReport": "edge_sdk.local",
    "Training": "edge_sdk.local",
    "evaluate": "edge_sdk.local",
    "open_artifact": "edge_sdk.engine.artifact",
    "parse_size": "edge_sdk.memory",
    "train": "edge_sdk.local",
}


def __getattr__(name: str) -> object:
    """Load what is exported on demand: https://peps.python.org/pep-0562/."""
    if name not in _HOMES:
        msg = f"module 'edge_sdk' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
