"""Which of onnxruntime's execution providers train: the CPU, or CUDA with the CPU behind it for what it lacks.

What the installed onnxruntime has, a process of its own is asked: it is never loaded into an agent.
"""

from __future__ import annotations

import enum
import subprocess
import sys
from typing import Final

from edge_sdk.environment import training_environment
from edge_sdk.errors import ConfigError
from edge_sdk.wire.errors import last_line

ASKS: Final = """\
import sys
from edge_sdk.engine import runtime
from edge_sdk.errors import ConfigError
from edge_sdk.providers import Provider
try:
    runtime.use(Provider(sys.argv[1]))
except ConfigError as error:
    sys.exit(str(error))
print(*(provider.value for provider in runtime.available()))
"""


class Provider(enum.Enum):
    """An execution provider."""

    CPU = "cpu"
    CUDA = "cuda"


def require(provider: Provider) -> None:
    """Raise ConfigError where the installed onnxruntime lacks the provider. The CPU is in all of them."""
    if provider is not Provider.CPU:
        installed(provider)


def installed(required: Provider = Provider.CPU) -> list[str]:
    """Names of what the installed onnxruntime has, from a fresh process. Raises ConfigError where `required` is not."""
    command = [sys.executable, "-c", ASKS, required.value]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=training_environment(1))
    if done.returncode != 0:
        raise ConfigError(last_line(done.stderr, f"onnxruntime cannot be asked: exit status {done.returncode}"))
    return done.stdout.split()
