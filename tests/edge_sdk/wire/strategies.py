"""Hypothesis strategies for everything that the wire carries, made from the dataclasses' own annotations."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.codec import MAX_INTEGER
from edge_sdk.wire.messages import (
    MAX_BATCH,
    MAX_CHUNK_BYTES,
    MAX_STEPS,
    MAX_TOKENS,
    MAX_WINDOW,
    MIN_POWER,
    Chunk,
    ChunkRequest,
    OptimizerKind,
    Schedule,
    Task,
)
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure.said import Masking, MaskKeys, MaskShares

TEXT = st.text(max_size=20)
INTEGERS = st.integers(-MAX_INTEGER - 1, MAX_INTEGER)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SHA256 = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())
BLOBS = st.builds(Blob, SHA256, st.integers(0, 1 << 48))
STEPS = st.integers(1, MAX_STEPS)
MASKINGS = st.builds(
    Masking, TEXT, st.floats(1e-6, 1e9), st.integers(1, (1 << 31) - 1), st.integers(1, (1 << 31) - 1), st.floats(0, 1e9)
)
TASKS = STEPS.flatmap(
    lambda steps: st.builds(
        Task,
        task_id=TEXT,
        round=st.integers(0, 1 << 31),
        artifact=BLOBS,
        adapter=BLOBS,
        steps=st.just(steps),
        batch=st.integers(1, MAX_BATCH),
        tokens=st.integers(1, MAX_TOKENS),
        optimizer=st.sampled_from(OptimizerKind),
        learning_rate=st.floats(0, 100),
        weight_decay=st.floats(0, 1),
        schedule=st.sampled_from(Schedule),
        warmup_steps=st.integers(0, steps),
        clip_norm=st.floats(0, 1e9),
        seed=st.integers(0, MAX_INTEGER),
        freeze=st.lists(TEXT, max_size=3).map(tuple),
        deadline_s=st.floats(0, 1e9),
        power=st.floats(MIN_POWER, 1),
        masking=st.none() | MASKINGS,
        example_noise=st.none() | st.builds(ExampleNoise, st.floats(1e-6, 1e9), st.floats(0, 1e6)),
    )
)
CHUNK_REQUESTS = st.builds(
    ChunkRequest,
    SHA256,
    st.integers(1024, MAX_CHUNK_BYTES),
    st.integers(0, 1 << 40),
    st.binary(min_size=1, max_size=50),
    st.integers(1, MAX_WINDOW),
)
KEYS, NAMES = st.binary(min_size=32, max_size=32), st.text(max_size=20)
SIGNATURES = st.binary(min_size=64, max_size=64)
MASK_KEYS = st.builds(MaskKeys, TEXT, KEYS, KEYS, KEYS, SIGNATURES)
MASK_SHARES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=50), SIGNATURES), max_size=3).flatmap(
    lambda dealt: st.builds(
        MaskShares,
        task_id=TEXT,
        boxes=st.just({name: box for name, (box, _) in dealt.items()}),
        digests=st.just({name: digests for name, (_, digests) in dealt.items()}),
    )
)
SHARES = {"battery": st.floats(0, 1), "clock": st.floats(0, 1)}  # fields of that name, whatever has them
CHUNKS = st.builds(
    Chunk,
    SHA256,
    st.integers(0, MAX_CHUNK_BYTES),
    st.integers(0, MAX_INTEGER),
    st.integers(0, (1 << 32) - 1),
    st.binary(max_size=50),
)
KNOWN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bytes: st.binary(max_size=50),
    bool: st.booleans(),
    int: INTEGERS,
    float: FLOATS,
    Blob: BLOBS,
    Task: TASKS,
    ChunkRequest: CHUNK_REQUESTS,
    MaskKeys: MASK_KEYS,
    MaskShares: MASK_SHARES,
    Chunk: CHUNKS,
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """These bytes with a few replaced, lost or added, in up to three places."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation, as far as the wire's dataclasses use annotations."""
    if kind in KNOWN:
        return KNOWN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(arguments[0])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        msg = f"no strategy for {kind!r}"
        raise TypeError(msg)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return st.builds(kind, **{name: SHARES.get(name, values(hints[name])) for name in names})
