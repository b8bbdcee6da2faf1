"""What training a policy takes, and what it leaves: for whoever starts it in a process of its own. No torch here."""

from __future__ import annotations

import importlib.util
from typing import Final

NEEDED: Final = ("torch", "gymnasium", "sb3_contrib")
POLICY: Final = "policy.safetensors"


def lacking() -> list[str]:
    """What is not installed of it."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]
