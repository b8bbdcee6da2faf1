"""onnxruntime, imported here and nowhere else.

Its wheels from 1.29 on collect telemetry by default: importing them leaves a device id and a database in the user's
cache folder. The variable below prevents that, and only before the import; private data lives on these devices.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from edge_sdk.errors import ArtifactError, ConfigError
from edge_sdk.providers import Provider
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.graphs import MAX_GRAPH_BYTES, check_graph
from edge_sdk.wire.tensors import Array

VERSION = f"onnxruntime {onnxruntime.__version__}"
onnxruntime.set_default_logger_severity(3)  # warnings about graphs are the exporter's business, not a device's
GROWS_BY_DOUBLING, UNBOUNDED, DEFAULT = 0, 0, -1
ALWAYS_SPLIT = 1  # a chunk of less than twice what is asked for is given whole otherwise: up to half of it is lost


def reserve_arena(first_bytes: int) -> None:
    """Make the arena that all graphs of this process share; from the second call on without effect.

    Memory is allocated, cleared and mapped once instead of at every node, and what one graph has freed serves the next.
    Its first region takes `first_bytes` of addresses, for all that is expected: pages that are never touched cost
    nothing, but regions do not merge: a large block would not fit what small ones have left. Further regions double.
    """
    if _registered:
        return
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    settings = onnxruntime.OrtArenaCfg(UNBOUNDED, GROWS_BY_DOUBLING, first_bytes or DEFAULT, ALWAYS_SPLIT)
    onnxruntime.create_and_register_allocator(place, settings)
    _registered.append(place)


_registered: list[Any] = []  # onnxruntime refuses a second arena

EXECUTES = {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}
WHEELS = {Provider.CUDA: "NVIDIA's onnxruntime-gpu for its JetPack"}
_used = [Provider.CPU]  # by every graph that is loaded from now on: like the arena, of the whole process


def available() -> list[Provider]:
    """The providers that this onnxruntime has."""
    names = onnxruntime.get_available_providers()
    return [provider for provider, name in EXECUTES.items() if name in names]


def use(provider: Provider) -> None:
    """Load graphs with this provider from now on. Raises ConfigError where this onnxruntime lacks it."""
    if provider not in available():
        has = ", ".join(found.value for found in available())
        wheel = f"; on a Jetson install {WHEELS[provider]} instead" if provider in WHEELS else ""
        msg = f"{VERSION} has no provider {provider.value}, only {has}{wheel}"
        raise ConfigError(msg)
    _used[0] = provider


class Graph:
    """One loaded graph. Inputs are read in place (a mapped weight is never copied); outputs lie in the arena until they
    are dropped.
    """

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        """Load the graph. Raises ArtifactError for one that no device may load, see `graphs`, or when this onnxruntime
        refuses it.
        """
        with path.open("rb") as file:
            data = file.read(MAX_GRAPH_BYTES + 1)
        try:
            check_graph(data)
        except WireError as error:
            msg = f"graph {path.name[:12]} is not loaded: {error}"
            raise ArtifactError(msg) from error
        reserve_arena(0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait in a loop for work take the core from whoever would give it to them: at a load of three
        # beside a step on two cores it took 1.5 times as long, at a load of nine twice (measured).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # patterns are kept per shape, and lengths vary
        options.add_session_config_entry("session.use_env_allocators", "1")
        # The arena is for what flows: constants that lie in it from the start would count as what a graph needs.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        try:
            # The CPU comes last, and runs the nodes that the other lacks.
            wanted = list(dict.fromkeys([EXECUTES[_used[0]], EXECUTES[Provider.CPU]]))
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=wanted)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            msg = f"{VERSION} cannot load graph {path.name[:12]}: {_first_line(error)}"
            raise ArtifactError(msg) from error
        if self._session.get_providers() != wanted:  # it goes on with the CPU alone where there is no such device
            msg = f"{VERSION} has the provider {_used[0].value}, but cannot start it here: no such device, or no driver"
            raise ConfigError(msg)
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises MemoryError where the runtime could not allocate."""
        try:
            found = self._session.run(None, {name: given[name] for name in self.inputs})
        except Exception as error:
            if any(word in str(error) for word in ("bad_alloc", "Failed to allocate", "std::bad_alloc")):
                raise MemoryError(_first_line(error)) from error
            raise
        return dict(zip(self.outputs, (np.asarray(array) for array in found), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
