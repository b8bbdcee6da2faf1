"""What a device claims is checked before it counts."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.guards import ChecksConfig
from coordinator.validate import Accepted, Expected, Refused, check_delta, expected
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.delta import Delta, DeltaFile, Tensor, pack_array, unpack_array
from edge_sdk.wire.messages import DeltaCodec, RefusalReason
from tests.coordinator.samples import delta_bytes, make_delta, make_manifest, make_task

TASK = make_task()
WANTED = expected(TASK, "d", make_manifest("small", (1,), 100))
DELTA = make_delta(dict(WANTED.shapes))
A = "block.1/q.lora_A"


def file(**changes: object) -> bytes:
    """An honest blob, but for the given fields."""
    honest = codec.decode(DeltaFile, delta_bytes(TASK, "d", DELTA), 10**6)
    return codec.encode(dataclasses.replace(honest, **changes))  # type: ignore[arg-type]


def tensors(**changes: Tensor) -> dict[str, Tensor]:
    """Honest tensors, but for the given ones; `A` and `B` stand for the factors' names."""
    names = {"A": A, "B": "block.1/q.lora_B"}
    return {n: pack_array(a) for n, a in DELTA.tensors.items()} | {names.get(k, k): v for k, v in changes.items()}


def poisoned(value: float) -> Tensor:
    """A factor with one bad number."""
    array = np.array(DELTA.tensors[A])
    array[1, 2] = value
    return pack_array(array)


def test_an_honest_delta_passes() -> None:
    """What an honest device sends comes through unchanged."""
    verdict = check_delta(delta_bytes(TASK, "d", DELTA, examples=2), WANTED)
    assert isinstance(verdict, Accepted)
    assert verdict.examples == 2
    assert all(np.array_equal(verdict.delta.tensors[name], array) for name, array in DELTA.tensors.items())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (file(task_id="other"), RefusalReason.UNKNOWN_TASK),
        (file(device="other"), RefusalReason.UNKNOWN_TASK),
        (file(round=2), RefusalReason.WRONG_ROUND),
        (file(adapter=blob_of(b"older").sha256), RefusalReason.WRONG_ROUND),
        (file(examples=0), RefusalReason.MALFORMED),
        (file(examples=4), RefusalReason.MALFORMED),  # the task has 3
        (file(examples=10**12), RefusalReason.MALFORMED),
        (file(tensors={}), RefusalReason.WRONG_NAMES),
        (file(tensors=tensors(extra=pack_array(np.zeros(1, np.float32)))), RefusalReason.WRONG_NAMES),
        (file(tensors=tensors(A=pack_array(np.zeros((6, 2), np.float32)))), RefusalReason.WRONG_SHAPE),
        (file(tensors=tensors(A=pack_array(DELTA.tensors[A], DeltaCodec.FP16))), RefusalReason.MALFORMED),
        (file(tensors=tensors(A=Tensor(DeltaCodec.FP32, (2, 6), b"short"))), RefusalReason.MALFORMED),
        (file(tensors=tensors(A=Tensor(DeltaCodec.FP32, (1 << 40,), b""))), RefusalReason.WRONG_SHAPE),
        (file(tensors=tensors(A=poisoned(float("nan")))), RefusalReason.NOT_FINITE),
        (file(tensors=tensors(A=poisoned(float("-inf")))), RefusalReason.NOT_FINITE),
        (file(tensors=tensors(A=poisoned(-3e38))), RefusalReason.NOT_FINITE),  # its sum with another's is infinite
        (file(tensors=tensors(junk=Tensor(DeltaCodec.INT8, (99_999,), bytes(99_999)))), RefusalReason.TOO_LARGE),
        (b"", RefusalReason.MALFORMED),
        (b"\xc1not msgpack", RefusalReason.MALFORMED),
    ],
)
def test_each_lie_has_its_answer(data: bytes, reason: RefusalReason) -> None:
    """Every kind of wrong delta is refused for its own reason, in one line."""
    verdict = check_delta(data, WANTED)
    assert isinstance(verdict, Refused)
    assert verdict.reason is reason
    assert 0 < len(verdict.detail) <= 500
    assert "\n" not in verdict.detail


def test_frozen_factors_are_not_expected() -> None:
    """With A frozen the delta must not have it, and with nothing frozen it must."""
    frozen = make_task(freeze=("lora_A",))
    wanted = expected(frozen, "d", make_manifest("small", (1,), 100))
    assert set(wanted.shapes) == {"block.1/q.lora_B"}
    only_b = Delta({name: array for name, array in DELTA.tensors.items() if name.endswith("lora_B")})
    assert isinstance(check_delta(delta_bytes(frozen, "d", only_b), wanted), Accepted)
    assert isinstance(check_delta(delta_bytes(frozen, "d", DELTA), wanted), Refused)
    assert isinstance(check_delta(delta_bytes(TASK, "d", only_b), WANTED), Refused)


@pytest.mark.parametrize("asked", DeltaCodec)
@pytest.mark.parametrize("sent", DeltaCodec)
def test_the_codec_is_the_one_that_was_asked_for(asked: DeltaCodec, sent: DeltaCodec) -> None:
    """What comes in another codec than the task's is refused, also where it would be as long and more exact."""
    task = dataclasses.replace(TASK, delta_codec=asked)
    wanted = expected(task, "d", make_manifest("small", (1,), 100))
    packed = {name: pack_array(array, sent) for name, array in DELTA.tensors.items()}
    verdict = check_delta(file(tensors=packed), wanted)
    assert isinstance(verdict, Accepted if asked is sent else Refused)
    if isinstance(verdict, Accepted):
        for name, tensor in packed.items():
            assert np.array_equal(verdict.delta.tensors[name], unpack_array(tensor))


@given(st.binary(max_size=400))
def test_no_bytes_break_it(data: bytes) -> None:
    """Arbitrary bytes are refused, never raised about."""
    assert isinstance(check_delta(data, WANTED), Refused)


@given(st.data(), st.sampled_from(DeltaCodec))
def test_no_damage_breaks_it(data: st.DataObject, how: DeltaCodec) -> None:
    """An honest delta with damaged bytes is refused, or still has exactly the form that was asked for."""
    packed = {name: pack_array(array, how) for name, array in DELTA.tensors.items()}
    damaged = bytearray(file(tensors=packed))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    wanted = dataclasses.replace(WANTED, task=dataclasses.replace(TASK, delta_codec=how))
    verdict = check_delta(bytes(damaged), wanted)
    if isinstance(verdict, Accepted):
        assert {n: a.shape for n, a in verdict.delta.tensors.items()} == dict(WANTED.shapes)
        assert all(np.isfinite(a).all() for a in verdict.delta.tensors.values())


@pytest.mark.parametrize("how", DeltaCodec)
def test_the_bound_admits_every_honest_delta(how: DeltaCodec) -> None:
    """The size bound has room for the largest honest delta, and for little more around each tensor."""
    names = [f"block.{k}/{'n' * 100}" for k in range(60)]
    wanted = Expected(dataclasses.replace(TASK, delta_codec=how), "d", dict.fromkeys(names, (8, 576)))
    delta = make_delta(dict(wanted.shapes))
    honest = file(tensors={name: pack_array(array, how) for name, array in delta.tensors.items()})
    assert len(honest) <= wanted.max_bytes <= len(honest) + 256 * len(names) + 4096


ROWS = b"\xdc\x00\xc8"  # the beginning of an array of 200
NESTS = (b"\x90", b"\x91", b"\x80", b"\x81\xa0", b"\xdd\x00\x00\xff\xff", ROWS, ROWS + 200 * b"\x90")


@pytest.mark.parametrize("nest", NESTS)
def test_what_a_blob_claims_is_not_allocated(nest: bytes) -> None:
    """A blob as long as an honest one may be, made of containers alone, takes no more than a few honest ones."""
    wanted = Expected(TASK, "d", {f"block.{k}/{'n' * 100}": (8, 576) for k in range(200)})
    data = ROWS + nest * ((wanted.max_bytes - len(ROWS)) // len(nest))
    tracemalloc.start()
    try:
        verdict = check_delta(data, wanted)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(verdict, Refused)
    assert verdict.reason is RefusalReason.MALFORMED
    assert peak_bytes < 2 * wanted.max_bytes


def test_a_delta_is_held_to_the_size_of_others() -> None:
    """Over the limit it is refused, at the limit and without one it passes; its own size is told."""
    data, size = delta_bytes(TASK, "d", DELTA), DELTA.size()
    assert size == pytest.approx(np.sqrt(np.mean(np.concatenate([a.ravel() for a in DELTA.tensors.values()]) ** 2)))
    for limit in (None, size, 10.0):
        verdict = check_delta(data, dataclasses.replace(WANTED, size_limit=limit))
        assert isinstance(verdict, Accepted)
        assert verdict.size == size
    verdict = check_delta(data, dataclasses.replace(WANTED, size_limit=0.99 * size))
    assert isinstance(verdict, Refused)
    assert verdict.reason is RefusalReason.OVER_NORM


def test_levels_that_train_less_are_held_to_the_same_size() -> None:
    """A delta of half the tensors has the size of the whole one, and a shorter norm."""
    whole = Delta({name: np.full((3, 4), 0.5, np.float32) for name in "ab"})
    half = Delta({"a": whole.tensors["a"]})
    assert half.size() == whole.size() == 0.5
    assert half.norm() < whole.norm()
    assert Delta({}).size() == 0


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=9), st.data())
def test_fewer_than_half_do_not_move_the_limit_out(honest: list[float], data: st.DataObject) -> None:
    """However large the sizes of fewer liars than honest devices: the limit is at most that of the largest honest."""
    liars = data.draw(st.lists(st.floats(0, 1e9), max_size=len(honest) - 1))
    limit = ChecksConfig(norm_factor=3).size_limit([*honest, *liars])
    assert limit is None or limit <= 3 * max(honest) * (1 + 1e-9)
    assert ChecksConfig(norm_factor=0).size_limit(honest) is None
    assert ChecksConfig().size_limit([]) is None
