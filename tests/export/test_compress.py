"""Compression: which layers stay, and how matrices are rounded."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.wire.manifest import NAME
from export.compress.depth import uniform_layers
from export.compress.quantize import BLOCK, STORAGES, held_bytes, quantize_tensors, rounded
from export.errors import ExportError
from export.levels import Drop, LevelRequest, Refitting, default_name, resolve_level


@given(st.integers(1, 200), st.data())
def test_layers_are_kept_evenly(total: int, data: st.DataObject) -> None:
    """As many as asked for, in order, first and last among them, at distances that differ by at most one."""
    keep = data.draw(st.integers(1, total))
    layers = uniform_layers(total, keep)
    assert len(layers) == keep
    assert layers[0] == 0
    if keep > 1:
        assert layers[-1] == total - 1
        steps = np.diff(layers)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1
    if keep == total:
        assert layers == tuple(range(total))


def test_the_index_rule_is_offsite_tunings() -> None:
    """round(i (L - 1) / (k - 1)), by hand for 30 layers."""
    assert uniform_layers(30, 5) == (0, 7, 14, 22, 29)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_impossible_depths_are_refused(keep: int) -> None:
    """One line that says what is possible."""
    with pytest.raises(ExportError, match="give 1 to 4"):
        uniform_layers(4, keep)


MATRICES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.floats(-1e4, 1e4, width=32)
)


def steps(matrix: np.ndarray, bits: int) -> np.ndarray:
    """How far neighbours among the numbers that can be held are apart at most, by weight."""
    largest = np.abs(matrix)
    if bits == 16:
        return np.asarray(largest / 2**10)
    share, numbers = (matrix.shape[1], 127) if bits == 8 else (BLOCK, 8)
    for k in range(0, matrix.shape[1], share):
        largest[:, k : k + share] = largest[:, k : k + share].max(axis=1, keepdims=True)
    return np.asarray(largest / numbers)


@given(MATRICES, st.sampled_from([16, 8, 4]))
def test_rounding_is_within_half_a_step(matrix: np.ndarray, bits: int) -> None:
    """Each weight is off by at most half a step of its own, its row's, its block's, and zeros stay zero.

    By a whole step at 4 bits, on the side opposite to the block's largest: 16 numbers leave zero one neighbour too few.
    """
    error = np.abs(rounded(matrix, bits) - matrix)
    share = 1.0 if bits == 4 else 0.5
    assert (error <= share * steps(matrix, bits) * (1 + 1e-3) + 1e-6).all()
    assert not rounded(np.zeros_like(matrix), bits).any()


@given(MATRICES, st.sampled_from([16, 8, 4]))
def test_a_row_is_held_by_itself(matrix: np.ndarray, bits: int) -> None:
    """The rows of the parts are the parts of the rows: some can be looked up, and slices multiplied, without others."""
    whole, last = STORAGES[bits].hold(matrix), STORAGES[bits].hold(matrix[-1:])
    for part, row in zip(whole, last, strict=True):
        assert len(part) == len(matrix)
        np.testing.assert_array_equal(part[-1:], row)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_what_is_held_already_stays(rows: int, blocks: int, seed: int) -> None:
    """A matrix that is on a grid already, whatever its scales, is held exactly."""
    generator = np.random.default_rng(seed)
    half = generator.normal(size=(rows, blocks)).astype(np.float16)
    assert np.array_equal(rounded(half.astype(np.float32), 16), half)
    nibbles = generator.integers(-8, 8, (rows, blocks, BLOCK)) // generator.integers(1, 9, (rows, blocks, 1))
    matrix = (nibbles * half[:, :, None].astype(np.float32)).reshape(rows, -1)
    np.testing.assert_array_equal(rounded(matrix, 4), matrix)


def test_a_block_of_4_bits_by_hand() -> None:
    """As the protocol describes it: the largest is nibble 0, zero is 8, the row's second half is in high nibbles."""
    matrix = np.zeros((1, 40), np.float32)
    matrix[0, [0, 1, 39]] = [-4, 2, 1]
    packed, scale = STORAGES[4].hold(matrix)
    np.testing.assert_array_equal(scale, np.array([[0.5, -0.125]], np.float16))
    wanted = np.full((1, 32), 0x88, np.uint8)
    wanted[0, [0, 1, 7]] = [0x80, 0x8C, 0x08]
    np.testing.assert_array_equal(packed, wanted)


@pytest.mark.parametrize(
    ("bits", "kinds", "row_bytes"),
    [
        (16, {"w": "float16"}, 2 * 80),
        (8, {"w": "int8", "w.scale": "float32"}, 80 + 4),
        (4, {"w": "uint8", "w.scale": "float16"}, 96 // 2 + 2 * 96 // 32),
    ],
)
def test_only_matrices_are_quantized(bits: int, kinds: dict[str, str], row_bytes: int) -> None:
    """Norms and biases stay float32; a matrix takes what its bits say, and a scale per row or block."""
    found = quantize_tensors({"norm": np.ones(4, np.float32), "w": np.ones((2, 80), np.float32)}, bits)
    assert {name: array.dtype.name for name, array in found.items()} == {"norm": "float32", **kinds}
    assert sum(found[name].nbytes for name in kinds) == 2 * row_bytes
    assert held_bytes({"norm": np.ones(4, np.float32), "w": np.ones((2, 80), np.float32)}, bits) == 16 + 2 * row_bytes


@pytest.mark.parametrize(("bits", "largest"), [(16, 1e5), (4, 1e6), (8, np.inf), (4, np.nan)])
def test_weights_beyond_what_is_held_are_refused(bits: int, largest: float) -> None:
    """One line, where the weights would become infinite in silence."""
    with pytest.raises(ExportError, match=f"w reaches .*, which a level of {bits} bits cannot hold"):
        quantize_tensors({"w": np.array([[1, largest]], np.float32)}, bits)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (LevelRequest("a", 5, None, None), "5 bits are not supported; supported are 32, 16, 8, 4"),
        (LevelRequest("a", 32, None, 5), "give 1 to 4"),
        (LevelRequest("a", 32, 2, 3), "give 1 to 2"),
        (LevelRequest("../a", 32, None, None), "is no level name"),
        (LevelRequest("a", 32, None, None, ffn=0), "a share of 0 of an FFN's neurons: give more than 0 and at most 1"),
        (LevelRequest("a", 32, None, None, ffn=1.5), "a share of 1.5 of an FFN's neurons"),
        (LevelRequest("a", 32, None, None, ffn=float("nan")), "a share of nan of an FFN's neurons"),
        (LevelRequest("a", 32, None, None, svd=("o_proj",)), "svd of 1 modules at rank 0: give modules and a rank"),
        (LevelRequest("a", 32, None, None, svd_rank=4), "svd of 0 modules at rank 4"),
        (
            LevelRequest("a", 4, None, None, refit=Refitting.DISTILL),
            "a distillation is of what was cut: give fewer",
        ),
        (LevelRequest("a", 8, None, None, refit=Refitting.LEAST_SQUARES), "a refit is of what was cut, and of 4 bits"),
        (LevelRequest("a", 32, 2, None, refit=Refitting.DISTILL, distill_steps=0), "0 steps of distillation: give 1"),
        (LevelRequest("a", 32, 2, None, refit=Refitting.DISTILL, distill_rate=0), "100 steps at a learning rate of 0"),
        (LevelRequest("a", 8, None, None, tensors_mb=0), "0 MB of tensors in 8 bits or fewer"),
        (LevelRequest("a", 4, None, None, tensors_mb=9), "9 MB of tensors in 4 bits or fewer"),
        (LevelRequest("a", 8, None, None, drop=Drop.IMPORTANCE), "level a keeps all layers: give how many"),
    ],
)
def test_impossible_levels_are_refused(request_: LevelRequest, message: str) -> None:
    """One line that says what is possible."""
    with pytest.raises(ExportError, match=message):
        resolve_level(request_, 4, range(4), influence=range(4), public_rows=16)


def test_bridges_are_distilled_faster_than_blocks() -> None:
    """Unless a rate is given: blocks are the model's own, and a rate that suits bridges would have them forget."""
    distil = functools.partial(LevelRequest, "a", 32, train_last=None, refit=Refitting.DISTILL)

    def rate(request: LevelRequest) -> float:
        refit = resolve_level(request, 4, range(4), public_rows=16).refit
        assert refit is not None
        return refit.learning_rate

    assert rate(distil(layers=2)) > rate(distil(layers=None, ffn=0.5))
    assert rate(distil(layers=2, distill_rate=0.5)) == rate(distil(layers=None, ffn=0.5, distill_rate=0.5)) == 0.5


@pytest.mark.parametrize(
    ("keep", "adapted", "layers"),
    [
        (5, (0, 1, 8, 9), (0, 1, 2, 8, 9)),
        (7, (0, 1, 8, 9), (0, 1, 2, 4, 7, 8, 9)),
        (4, (0, 1, 8, 9), (0, 1, 8, 9)),
        (4, (9,), (0, 4, 8, 9)),
        (4, (), (0, 3, 6, 9)),
        (4, range(10), (0, 3, 6, 9)),
    ],
)
def test_layers_go_beside_those_that_train(keep: int, adapted: Sequence[int], layers: tuple[int, ...]) -> None:
    """Blocks that train whole stay, and the others go evenly; where all have a part of the adapter or none, of all."""
    level = resolve_level(LevelRequest("a", 8, keep, None), 10, adapted)
    assert level.layers == layers
    assert level.trained_layers == tuple(layer for layer in layers if layer in adapted)


def test_layers_that_train_stay_whatever_their_influence() -> None:
    """By importance, too, it is the others that go."""
    request = LevelRequest("a", 8, 4, None, drop=Drop.IMPORTANCE)
    level = resolve_level(request, 6, (4, 5), influence=(1, 9, 2, 8, 0, 0))
    assert level.layers == (1, 3, 4, 5)
    assert level.trained_layers == (4, 5)


def test_layers_that_train_are_not_dropped() -> None:
    """Fewer layers than those that train are refused, with how many it takes."""
    with pytest.raises(ExportError, match="cannot keep 3 of 10 layers: 4 of them train, give 4 to 10"):
        resolve_level(LevelRequest("a", 8, 3, None), 10, (0, 1, 8, 9))


def test_levels_are_named_by_what_they_are() -> None:
    """The default name tells bits, layers and trained layers, where they are not all, and what was done to it."""
    assert default_name(LevelRequest("", 32, None, None)) == "fp32"
    assert default_name(LevelRequest("", 16, None, None)) == "fp16"
    assert default_name(LevelRequest("", 8, 24, 6)) == "int8-24layers-last6"
    surgery = (0.5, ("o_proj",), 64)
    everything = LevelRequest("", 8, 24, 6, None, Drop.IMPORTANCE, *surgery, Refitting.DISTILL, tensors_mb=60.5)
    assert default_name(everything) == "int8-60.5mb-24layers-importance-ffn50-svd64-distill-last6"
    assert NAME.fullmatch(default_name(everything))
