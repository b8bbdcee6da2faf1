"""Tensor files: the safetensors format, memory-mapped and checked before use.

The bytes (https://github.com/huggingface/safetensors, section Format): an unsigned 64-bit little-endian length N, N
bytes of JSON, then the data. The JSON maps each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets
relative to the data; tensors are row-major and little-endian, in order, without holes. `__metadata__` is ignored.

We write each file so that its data begins at a multiple of 64 bytes and each tensor is as aligned as its predecessors'
sizes allow (largest element first): the runtime reads the mapping in place, without a copy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, final

import numpy as np

from edge_sdk.wire.blobs import written_atomically
from edge_sdk.wire.errors import DecodeError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER_BYTES = 1 << 20
MAX_COMPLAINT = 300  # characters of an error: a name in a header may be long
MAX_DIMENSIONS = 8
ALIGNMENT_BYTES = 64


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The format's name of a NumPy element type. Raises ValueError for one that the format lacks here."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    msg = f"element type {dtype} cannot be stored; use one of {', '.join(DTYPES)}"
    raise ValueError(msg)


def write_tensors(path: pathlib.Path, tensors: Mapping[str, Array]) -> None:
    """Write `tensors` to `path`, whole or not at all; equal tensors give equal bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, offset = {}, 0
    for name in order:
        end = offset + tensors[name].nbytes
        header[name] = {
            "dtype": dtype_name(tensors[name].dtype),
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT_BYTES)
    with written_atomically(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = tensors[name]
            file.write(np.ascontiguousarray(array, dtype=DTYPES[dtype_name(array.dtype)]).data)


@final
class TensorFile(Mapping[str, Array]):
    """The tensors of one file, mapped read-only: an array costs memory only where it is touched.

    `evict` gives the touched pages back to the kernel (they are clean: a later touch reads them again). Arrays handed
    out keep the mapping alive. Raises DecodeError when the file is not a well-formed tensor file,
    FileNotFoundError.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Map `path` and check its header against its size."""
        self.path = path
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < 8:  # noqa: PLR2004 - the header's length itself
                msg = f"{path.name}: {size_bytes} bytes are no tensor file"
                raise DecodeError(msg)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._arrays = _views(self._map, size_bytes)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{path.name} is not a well-formed tensor file: {error or type(error).__name__}"[:MAX_COMPLAINT]
            raise DecodeError(msg) from error
        self._address = np.frombuffer(self._map, np.uint8, 1).__array_interface__["data"][0]

    def __getitem__(self, name: str) -> Array:
        """The tensor, read-only, as a view of the mapping."""
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in the file's order."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self._arrays)

    def evict(self, part: Array | None = None) -> None:
        """Give touched pages back to the kernel: all, or those under `part`, an array of this file or a slice of
        one.
        """
        if part is None:
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        if not part.nbytes:
            return
        begin = part.__array_interface__["data"][0] - self._address
        first = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, begin + part.nbytes - first)

    def read_rows(self, name: str, rows: Array) -> Array:
        """Rows (n,) of a matrix as a new array, read from the file: mapping scattered rows would touch most pages.

        Raises IndexError for a row that is not there, OSError, and DecodeError when the file has become shorter.
        """
        whole = self._arrays[name]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(whole):
            msg = f"{name} has {len(whole)} rows; rows {rows.min()} to {rows.max()} were asked for"
            raise IndexError(msg)
        found = np.empty((len(rows), *whole.shape[1:]), whole.dtype)
        row_bytes = whole[:1].nbytes
        begin = whole.__array_interface__["data"][0] - self._address
        with self.path.open("rb", buffering=0) as file:
            for k, row in enumerate(rows.tolist()):
                file.seek(begin + row * row_bytes)
                if file.readinto(found[k : k + 1].data) != row_bytes:
                    msg = f"{self.path.name} has become shorter"
                    raise DecodeError(msg)
        return found

    def close(self) -> None:
        """Drop our arrays; the mapping goes when the last array handed out goes."""
        self._arrays = {}

    def __enter__(self) -> TensorFile:
        """A tensor file is its own context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def read_tensors(path: pathlib.Path) -> dict[str, Array]:
    """All tensors of a small file, copied into memory. Raises like `TensorFile`."""
    with TensorFile(path) as file:
        return {name: np.array(array) for name, array in file.items()}


def _views(mapping: mmap.mmap, size_bytes: int) -> dict[str, Array]:
    length = int.from_bytes(mapping[:8], "little")
    begin = 8 + length
    if length > MAX_HEADER_BYTES or begin > size_bytes:
        msg = f"a header of {length} bytes"
        raise ValueError(msg)
    header = json.loads(mapping[8:begin].decode(), object_pairs_hook=_unique)
    header.pop("__metadata__", None)
    views, expected = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape = DTYPES[entry["dtype"]], _shape(entry["shape"])
        first, last = entry["data_offsets"]
        end = expected + math.prod(shape) * dtype.itemsize
        if type(last) is not int or (first, last) != (expected, end) or begin + end > size_bytes:
            msg = f"tensor {name!r} does not lie where its shape says"
            raise ValueError(msg)
        views[name] = np.frombuffer(mapping, dtype, math.prod(shape), begin + first).reshape(shape)
        expected = last
    if begin + expected != size_bytes:
        msg = f"{size_bytes - begin - expected} bytes after the last tensor"
        raise ValueError(msg)
    return views


def _unique(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name appears twice"
        raise ValueError(msg)
    return found


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        msg = f"shape {value!r}"
        raise ValueError(msg)
    if any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 1 << 48 for n in value):
        msg = f"shape {value!r}"
        raise ValueError(msg)
    return tuple(value)
