"""Where the walk puts down what it will need on the way back.

The runtime's arena is for what lives within one run: an array that outlives it would leave holes that the next run does
not fit (10 to 20 % of what was kept, measured). A shelf's buffers are made once and used again at every step: what a
step keeps takes its own size, and no page is cleared twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.wire.tensors import Array


class Shelf:
    """Copies of arrays by place and name; a place holds what was put there last."""

    def __init__(self) -> None:
        """Empty."""
        self._buffers: dict[tuple[str, str, str], Array] = {}

    @property
    def size_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def put(self, place: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copies of `arrays` that stay until something else is put in their place."""
        return {name: self._copy((place, name, array.dtype.str), array) for name, array in arrays.items()}

    def _copy(self, key: tuple[str, str, str], array: Array) -> Array:
        if key not in self._buffers or self._buffers[key].size < array.size:
            self._buffers.pop(key, None)  # first, so that there are never two
            self._buffers[key] = np.empty(array.size, array.dtype)
        copy: Array = self._buffers[key][: array.size].reshape(array.shape)
        np.copyto(copy, array)
        return copy
