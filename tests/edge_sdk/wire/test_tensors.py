"""Tensor files are safetensors files, and a file that lies about itself is refused before it is used."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.errors import DecodeError, WireError
from edge_sdk.wire.tensors import (
    ALIGNMENT_BYTES,
    DTYPES,
    MAX_HEADER_BYTES,
    Array,
    TensorFile,
    read_tensors,
    write_tensors,
)
from tests.edge_sdk.wire.strategies import damaged

ROOT = pathlib.Path(__file__).parents[3]
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """A small array of any element type that the format knows."""
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(SHAPES)
    data = draw(st.binary(min_size=(size := math.prod(shape) * dtype.itemsize), max_size=size))
    return (
        (np.frombuffer(data, np.uint8) % 2 if dtype.kind == "b" else np.frombuffer(data, dtype))
        .reshape(shape)
        .astype(dtype)
    )


TENSORS = st.dictionaries(NAMES, arrays(), max_size=4)


def made(header: Any, data: bytes = b"") -> bytes:
    """The bytes of a file with this header, written here and not by the code under test."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    """A header's words on one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def opened(folder: pathlib.Path, data: bytes) -> dict[str, Array]:
    """The tensors of a file with these bytes."""
    path = folder / "file"
    path.write_bytes(data)
    return read_tensors(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder for the files of many examples, one after the other."""
    return tmp_path_factory.mktemp("tensors")


@given(TENSORS)
def test_tensors_survive(scratch: pathlib.Path, tensors: dict[str, Array]) -> None:
    """Names, shapes, element types and every bit; equal tensors give equal files, in whatever order they come."""
    write_tensors(scratch / "a", tensors)
    found = read_tensors(scratch / "a")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    write_tensors(scratch / "b", dict(reversed(tensors.items())))
    assert (scratch / "a").read_bytes() == (scratch / "b").read_bytes()


@given(TENSORS)
def test_data_is_aligned_for_reading_in_place(scratch: pathlib.Path, tensors: dict[str, Array]) -> None:
    """The data begins at a multiple of 64 bytes, and each tensor where its elements may lie."""
    write_tensors(scratch / "a", tensors)
    assert (8 + int.from_bytes((scratch / "a").read_bytes()[:8], "little")) % ALIGNMENT_BYTES == 0
    with TensorFile(scratch / "a") as file:
        assert all(array.flags.aligned for array in file.values())


def test_anyone_can_read_our_files(tmp_path: pathlib.Path) -> None:
    """The safetensors library finds in our file what we wrote, and we find what it wrote, metadata aside."""
    safetensors = pytest.importorskip("safetensors.numpy")
    ours: dict[str, Array] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "q": np.array([-3, 4], np.int8),
        "t": np.array([True, False, True]),
        "i": np.arange(3, dtype=np.int64),
        "none": np.zeros((0, 2), np.float16),
    }
    write_tensors(tmp_path / "ours", ours)
    safetensors.save_file(ours, tmp_path / "theirs", metadata={"format": "np"})
    for found in (safetensors.load_file(tmp_path / "ours"), read_tensors(tmp_path / "theirs")):
        assert found.keys() == ours.keys()
        assert all(np.array_equal(found[name], array) for name, array in ours.items())


def test_an_empty_tensor_may_be_named_after_its_neighbour(tmp_path: pathlib.Path) -> None:
    """Two tensors may begin at one place if the first is empty, in whatever order the header names them."""
    header = {"a": entry(0, 4, [1]), "empty": entry(0, 0, [0])}
    assert opened(tmp_path, made(header, bytes(4)))["a"].shape == (1,)


WELL = {"a": entry(0, 8, [2]), "b": entry(8, 12, [1])}
BAD = {
    "nothing": b"",
    "too short for a length": bytes(7),
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "a header of 16 exabytes": b"\xff" * 8 + b"{}",
    "a header over the bound": made(b"{}" + b" " * MAX_HEADER_BYTES),
    "no JSON": made(b"{", b""),
    "no UTF-8": made(b'{"\xff":1}', b""),
    "no map": made([1, 2]),
    "a number": made(b"7"),
    "null": made(b"null"),
    "nested too deep": made(b"[" * 100_000),
    "a tensor that is no map": made({"a": 1}),
    "no element type": made({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "an element type we lack": made({"a": entry(0, 2, [1], "BF16")}, bytes(2)),
    "an element type that is a list": made({"a": entry(0, 4, [1], ["F32"])}, bytes(4)),
    "a negative dimension": made({"a": entry(0, 4, [-1])}, bytes(4)),
    "two negative dimensions": made({"a": entry(0, 4, [-1, -1])}, bytes(4)),
    "a dimension that is a truth value": made({"a": entry(0, 4, [True])}, bytes(4)),
    "a broken dimension": made({"a": entry(0, 4, [1.0])}, bytes(4)),
    "a shape that is no list": made({"a": entry(0, 4, 1)}, bytes(4)),
    "too many dimensions": made({"a": entry(0, 4, [1] * 9)}, bytes(4)),
    "a product that wraps around": made({"a": entry(0, 0, [1 << 32, 1 << 32])}),
    "an empty shape too large for an array": made({"a": entry(0, 0, [0, 1 << 47, 1 << 47])}),
    "offsets of another length": made({"a": {**entry(0, 4, [1]), "data_offsets": [0, 4, 4]}}, bytes(4)),
    "offsets that are text": made({"a": entry("0", "4", [1])}, bytes(4)),
    "a broken offset": made({"a": entry(0, 4.0, [1])}, bytes(4)),
    "offsets backwards": made({"a": entry(4, 0, [1])}, bytes(4)),
    "a negative offset": made({"a": entry(-4, 0, [1])}, bytes(4)),
    "an offset not a number": made(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}', bytes(4)),
    "an offset without end": made(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', bytes(4)),
    "fewer bytes than its shape": made({"a": entry(0, 4, [2])}, bytes(4)),
    "past the end": made({"a": entry(0, 8, [2])}, bytes(4)),
    "overlap": made({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, bytes(8)),
    "the same bytes twice": made({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)),
    "a hole": made({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "a hole at the beginning": made({"a": entry(4, 8, [1])}, bytes(8)),
    "bytes after the last tensor": made(WELL, bytes(13)),
    "a name twice": made(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_file_that_lies_is_refused(tmp_path: pathlib.Path, data: bytes) -> None:
    """Each way to make a reader touch what is not there, or the same bytes twice, is a DecodeError."""
    with pytest.raises(DecodeError):
        opened(tmp_path, data)


def test_a_complaint_stays_short(tmp_path: pathlib.Path) -> None:
    """A name of half a megabyte does not fill a log."""
    with pytest.raises(DecodeError) as caught:
        opened(tmp_path, made({"n" * 500_000: entry(0, 4, [2])}, bytes(4)))
    assert len(str(caught.value)) <= 300


def test_a_file_that_is_not_there_is_not_malformed(tmp_path: pathlib.Path) -> None:
    """Absence is told apart from damage."""
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "absent")


@settings(max_examples=300)
@given(damaged(made(WELL, bytes(range(12)))))
def test_a_damaged_file_raises_only_a_wire_error(scratch: pathlib.Path, data: bytes) -> None:
    """Whatever happened to the bytes: a WireError, or tensors that lie within the file."""
    with contextlib.suppress(WireError):
        assert sum(array.nbytes for array in opened(scratch, data).values()) <= len(data)


@given(st.integers(0, 5), st.sampled_from(list(DTYPES.values())), st.data())
def test_rows_are_what_indexing_gives(
    scratch: pathlib.Path, width: int, dtype: np.dtype[Any], data: st.DataObject
) -> None:
    """Read from the file, any rows in any order, twice too, equal those of the mapping; also of a vector."""
    matrix = np.arange(7 * width).reshape(7, width).astype(dtype)
    vector = np.arange(7, dtype=np.float32)
    write_tensors(scratch / "a", {"before": np.ones(3, np.int8), "matrix": matrix, "vector": vector})
    rows = np.array(data.draw(st.lists(st.integers(0, 6), max_size=10)), np.int64)
    with TensorFile(scratch / "a") as file:
        assert np.array_equal(file.read_rows("matrix", rows), matrix[rows])
        assert np.array_equal(file.read_rows("vector", rows), vector[rows])
        assert file.read_rows("matrix", rows).dtype == dtype


@pytest.mark.parametrize("row", [-1, 7, 1 << 40])
def test_a_row_that_is_not_there_is_refused(tmp_path: pathlib.Path, row: int) -> None:
    """A neighbour's bytes are never taken for a row."""
    write_tensors(tmp_path / "a", {"m": np.zeros((7, 2), np.float32), "n": np.ones((7, 2), np.float32)})
    with TensorFile(tmp_path / "a") as file, pytest.raises(IndexError, match="m has 7 rows"):
        file.read_rows("m", np.array([0, row]))


def test_a_file_cut_while_it_is_open_is_noticed(tmp_path: pathlib.Path) -> None:
    """Rows that are no longer there are an error, and not zeros."""
    write_tensors(tmp_path / "a", {"m": np.ones((7, 2), np.float32)})
    with TensorFile(tmp_path / "a") as file:
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
        with pytest.raises(DecodeError, match="has become shorter"):
            file.read_rows("m", np.array([6]))


def test_arrays_are_read_only_and_outlive_the_file(tmp_path: pathlib.Path) -> None:
    """Nobody changes a blob through its mapping; an array handed out stays good when file and name are gone."""
    write_tensors(tmp_path / "a", {"x": np.arange(3, dtype=np.float32)})
    with TensorFile(tmp_path / "a") as file:
        array = file["x"]
    (tmp_path / "a").unlink()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert array.tolist() == [0, 1, 2]


def test_eviction_changes_no_value(tmp_path: pathlib.Path) -> None:
    """Pages given back are read again: whole files, slices across page borders, and nothing at all."""
    tensors = {"a": np.random.default_rng(0).normal(size=(300, 33)), "b": np.arange(5000), "z": np.zeros((0, 3))}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    write_tensors(tmp_path / "a", tensors)
    with TensorFile(tmp_path / "a") as file:
        for part in (None, file["a"][100:200], file["b"][-1:], file["a"], file["a"][:0], file["z"], file["z"][:0]):
            assert all(np.array_equal(file[name], array) for name, array in tensors.items())
            file.evict(part)
        assert all(np.array_equal(file[name], array) for name, array in tensors.items())


# Touches a file of 64 MB, gives parts of it back, and prints resident megabytes after each.
RESIDENT = """
import pathlib, sys
from edge_sdk.memory import read_memory
from edge_sdk.wire.tensors import TensorFile
file = TensorFile(pathlib.Path(sys.argv[1]))
print(read_memory().resident_bytes >> 20)
for part in (file["m"][:8192], None):
    float(file["m"].sum())
    print(read_memory().resident_bytes >> 20)
    file.evict(part)
    print(read_memory().resident_bytes >> 20)
"""


def test_eviction_gives_memory_back(tmp_path: pathlib.Path) -> None:
    """Resident memory rises by what is touched, and falls by what is evicted: half of it, then all of it."""
    rows = 16384
    write_tensors(tmp_path / "a", {"m": np.ones((rows, mmap.PAGESIZE // 4), np.float32)})
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    begin, whole, half, again, none = map(int, done.stdout.split())
    size = rows * mmap.PAGESIZE >> 20
    for measured, expected in ((whole, size), (half, size / 2), (again, size), (none, 0)):
        assert measured - begin == pytest.approx(expected, abs=4)
