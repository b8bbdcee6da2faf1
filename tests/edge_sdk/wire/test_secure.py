"""The laws of secure sums: what shares give back, what masks cancel to, and how far off a sum of integers is."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.errors import DecodeError, MaskError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.secure import keys, ring, shamir
from edge_sdk.wire.secure.said import Masking
from edge_sdk.wire.tensors import Array

SECRETS = st.binary(min_size=32, max_size=32)
SHAPES = {"b": (3, 5), "a": (7,)}
MASKING = Masking("run.1.1", bound=2.0, levels=ring.levels_for(10), whole=32)
HALF = 0.5 + 1e-7  # of a level: and what float64 rounds


def make_delta(seed: int, scale: float = 0.3) -> dict[str, Array]:
    """Random changes."""
    random = np.random.default_rng(seed)
    return {name: random.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


def numbers_of(delta: dict[str, Array], weight: int, masking: Masking = MASKING) -> bytes:
    """As a worker writes them."""
    out = io.BytesIO()
    ring.write_numbers(out, delta, weight, masking)
    return out.getvalue()


def summed(parts: list[bytes]) -> Array:
    """In the ring."""
    total = np.zeros(len(parts[0]) // 4, ring.U32)
    for part in parts:
        total += np.frombuffer(part, ring.U32)
    return total


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, threshold=st.integers(1, 6), more=st.integers(0, 4), data=st.data())
def test_enough_shares_give_it_back(secret: bytes, threshold: int, more: int, data: st.DataObject) -> None:
    """Any `threshold` of them, whichever."""
    shares = shamir.split(secret, threshold, range(1, threshold + more + 1))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert all(len(share) == shamir.SHARE_BYTES for share in shares.values())
    assert shamir.join({point: shares[point] for point in chosen}) == secret


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, threshold=st.integers(2, 6))
def test_fewer_give_another_or_none(secret: bytes, threshold: int) -> None:
    """One too few is as good as nothing: what comes out is not the secret."""
    shares = shamir.split(secret, threshold, range(1, threshold + 1))
    del shares[1]
    with contextlib.suppress(MaskError):
        assert shamir.join(shares) != secret


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, others=SECRETS, threshold=st.integers(2, 5))
def test_fewer_fit_every_secret(secret: bytes, others: bytes, threshold: int) -> None:
    """To shares that are too few there is one that makes any other secret of them: they tell nothing."""
    shares = shamir.split(secret, threshold, range(1, threshold + 1))
    few = {point: int.from_bytes(share, "big") for point, share in shares.items() if point > 1}
    prime = shamir.PRIME
    # The polynomial through `others` at 0 and the few shares, at point 1: Lagrange's formula.
    known = {0: int.from_bytes(others, "big"), **few}
    value = 0
    for point, at in known.items():
        term = at
        for other in known:
            if other != point:
                term = term * (1 - other) * pow(point - other, -1, prime) % prime
        value += term
    made = {**{p: shares[p] for p in few}, 1: (value % prime).to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.join(made) == others


@settings(max_examples=30, deadline=None)
@given(secret=SECRETS, place=st.integers(0, 32), flip=st.integers(1, 255))
def test_a_changed_share_gives_another_or_none(secret: bytes, place: int, flip: int) -> None:
    """Whichever byte of it is changed."""
    shares = shamir.split(secret, 3, (1, 2, 3))
    changed = bytearray(shares[2])
    changed[place] ^= flip
    with contextlib.suppress(MaskError):
        assert shamir.join({**shares, 2: bytes(changed)}) != secret


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (b"short", 1, (1,)),
        (bytes(32), 0, (1,)),
        (bytes(32), 3, (1, 2)),
        (bytes(32), 1, (0, 1)),
        (bytes(32), 1, (1, 1)),
    ],
)
def test_misuse(secret: bytes, threshold: int, points: tuple[int, ...]) -> None:
    """What cannot be dealt out raises."""
    with pytest.raises(ValueError, match="secret"):
        shamir.split(secret, threshold, points)


def test_a_liar_cannot_have_both_secrets() -> None:
    """Honest neighbours give up one share each, those in league with it two: too few for both by one at least."""
    for count in range(2, 130):
        leagued = math.ceil(count / 3) - 1
        threshold = shamir.threshold_of(count)
        assert count + leagued < 2 * threshold <= count + leagued + 2
        assert threshold <= count


def test_both_find_the_same_seed_and_nobody_else() -> None:
    """One sum's is not another's, and a third device has another one with each."""
    one, other, third = (keys.new_private() for _ in range(3))
    seed = keys.mask_seed(one, keys.public_of(other), "s")
    assert seed == keys.mask_seed(other, keys.public_of(one), "s")
    assert seed != keys.mask_seed(other, keys.public_of(one), "t")
    assert seed != keys.mask_seed(third, keys.public_of(one), "s")


def test_a_box_opens_for_its_reader_alone() -> None:
    """Not for another, not the other way round, and not with a byte changed."""
    one, other, third = (keys.new_private() for _ in range(3))
    box = keys.close_box(one, keys.public_of(other), "s", ("one", "other"), b"shares")
    assert keys.open_box(other, keys.public_of(one), "s", ("one", "other"), box) == b"shares"
    wrong = [
        (third, ("one", "other"), box),
        (other, ("other", "one"), box),
        (other, ("one", "other"), box[:-1] + bytes([box[-1] ^ 1])),
    ]
    for private, way, data in wrong:
        with pytest.raises(MaskError, match="does not open"):
            keys.open_box(private, keys.public_of(one), "s", way, data)


@pytest.mark.parametrize("public", [bytes(32), b"short"])
def test_no_key_is_no_key(public: bytes) -> None:
    """One that agrees with everybody on zero, or has another length."""
    with pytest.raises(MaskError, match="no key"):
        keys.mask_seed(keys.new_private(), public, "s")


def test_signed_keys_are_one_devices_for_one_sum() -> None:
    """Another name, sum, key or signer: not signed."""
    signer, both = Signer(bytes(32)), (bytes(32), bytes(range(32)))
    signature = keys.sign_keys(signer, "s", "a", both)
    assert keys.are_signed(signer.public, signature, "s", "a", both)
    assert not keys.are_signed(signer.public, signature, "t", "a", both)
    assert not keys.are_signed(signer.public, signature, "s", "b", both)
    assert not keys.are_signed(signer.public, signature, "s", "a", both[::-1])
    assert not keys.are_signed(Signer(bytes([1] * 32)).public, signature, "s", "a", both)


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=10), data=st.data())
def test_the_sum_is_exact_up_to_rounding(seeds: list[int], data: st.DataObject) -> None:
    """The mean of up to `most` deltas, with any weights, is off by no more than `rounding_error` says."""
    weights = [data.draw(st.integers(1, MASKING.whole)) for _ in seeds]
    deltas = [make_delta(seed) for seed in seeds]
    parts = [numbers_of(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    mean, weight = ring.mean_of(summed(parts), SHAPES, MASKING, len(seeds))
    assert weight == sum(weights)
    bound = ring.rounding_error(MASKING, len(seeds), weight)
    for name in SHAPES:
        true = sum(w * d[name].astype(np.float64) for w, d in zip(weights, deltas, strict=True)) / weight
        assert np.abs(mean[name] - true).max() <= bound * 2 * HALF + 1e-7  # and what float32 rounds


def test_the_largest_sum_is_no_remainder() -> None:
    """As many devices as there may be, each at the bound, on either side."""
    for side in (1, -1):
        delta = {name: np.full(shape, side * 99.0, np.float32) for name, shape in SHAPES.items()}
        parts = [numbers_of(delta, MASKING.whole)] * 10
        mean, _ = ring.mean_of(summed(parts), SHAPES, MASKING, 10)
        assert all(np.allclose(array, side * MASKING.bound) for array in mean.values()), "cut off at the bound"


def test_it_is_held_to_its_norm() -> None:
    """On the device: nobody else can."""
    masking = dataclasses.replace(MASKING, clip_norm=0.1)
    mean, _ = ring.mean_of(summed([numbers_of(make_delta(1), 32, masking)]), SHAPES, masking, 1)
    assert math.sqrt(sum(float(np.sum(a**2)) for a in mean.values())) == pytest.approx(0.1, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), seeds=st.lists(SECRETS, min_size=1, max_size=3, unique=True))
def test_masks_go_as_they_came(seed: int, seeds: list[bytes]) -> None:
    """A mask added in slices and taken away at once leaves the numbers as they were; one that is not, does not."""
    plain, out = numbers_of(make_delta(seed), 7), io.BytesIO()
    ring.mask_numbers(io.BytesIO(plain), out, [(one, sign) for one, sign in zip(seeds, itertools.cycle((1, -1)))])
    numbers = np.frombuffer(out.getvalue(), ring.U32).copy()
    assert numbers.tobytes() != plain
    for one, sign in zip(seeds, itertools.cycle((-1, 1))):
        ring.add_mask(numbers, (one, sign))
    assert numbers.tobytes() == plain


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta of many slices has the mask that it has in one."""
    plain, outs = numbers_of(make_delta(1), 7), []
    for length in (ring.SLICE_BYTES, 16):
        monkeypatch.setattr(ring, "SLICE_BYTES", length)
        out = io.BytesIO()
        ring.mask_numbers(io.BytesIO(plain), out, [(bytes(32), 1)])
        outs.append(out.getvalue())
    assert outs[0] == outs[1]
    numbers = np.frombuffer(outs[0], ring.U32).copy()
    ring.add_mask(numbers, (bytes(32), -1))
    assert numbers.tobytes() == plain


@pytest.mark.parametrize("weight", [0, 33])
def test_weights_that_cannot_be(weight: int) -> None:
    """Refused by who writes them; a sum of them by who reads it."""
    with pytest.raises(ValueError, match="weight"):
        numbers_of(make_delta(0), weight)
    numbers = summed([numbers_of(make_delta(0), 1)])
    numbers[0] = weight
    with pytest.raises(DecodeError, match="weights"):
        ring.mean_of(numbers, SHAPES, MASKING, 1)


@pytest.mark.parametrize("most", [0, 1 << 31])
def test_sums_that_cannot_be(most: int) -> None:
    """Of nobody, or of more than integers can tell apart."""
    with pytest.raises(ValueError, match="sum"):
        ring.levels_for(most)
