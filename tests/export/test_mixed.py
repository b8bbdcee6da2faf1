"""Bits by sensitivity: what is chosen, and that equal bits are the plain level."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_sdk.wire.manifest import LevelSpec
from edge_sdk.wire.tensors import read_tensors
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter
from export.compress.calibrate import Rounding
from export.compress.mixed import MB, choose_bits, part_errors, sensitivities, with_mixed_bits
from export.emulator import emulator
from export.errors import ExportError
from export.parity import Oracle, check_parity, require_parity
from export.parts import blocks_of
from export.program import Program
from tests.export.conftest import Exported, Exports, public_for, public_rows

SIZES = {16: 200, 8: 110, 4: 60}
ERROR = st.floats(0, 1, allow_subnormal=False)  # per byte, the least of all numbers is none
ERRORS = st.lists(st.fixed_dictionaries({8: ERROR, 4: ERROR}), min_size=1, max_size=6)


@given(ERRORS, st.integers(0, 1300))
def test_a_bound_is_held_with_what_harms_least(errors: list[dict[int, float]], room: int) -> None:
    """What is chosen fits, or is refused where nothing does; no part has room for more bits that would be better."""
    sizes = [SIZES] * len(errors)
    if room < 60 * len(errors):
        with pytest.raises(ExportError, match="even in 4 bits: give more MB"):
            choose_bits(sizes, errors, room)
        return
    chosen = choose_bits(sizes, errors, room)
    left = room - sum(SIZES[bits] for bits in chosen)
    assert left >= 0
    for now, found in zip(chosen, errors, strict=True):
        for bits, size in SIZES.items():
            fits = bits > now and size - SIZES[now] <= left
            assert not (fits and found.get(bits, 0.0) < found.get(now, 0.0))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6, unique=True), st.data())
def test_of_blocks_alike_the_most_sensitive_keep_their_bits(errors: list[float], data: st.DataObject) -> None:
    """With two precisions and equal sizes the choice is the best there is: the least sensitive go first."""
    count = data.draw(st.integers(0, len(errors)))
    sizes: list[Mapping[int, int]] = [{8: 110, 4: 60}] * len(errors)
    chosen = choose_bits(sizes, [{4: error} for error in errors], 110 * len(errors) - 50 * count)
    fewer = sorted(range(len(errors)), key=lambda k: errors[k])[:count]
    assert [k for k, bits in enumerate(chosen) if bits == 4] == sorted(fewer)


def test_room_left_over_gives_bits_back() -> None:
    """By hand: to fit, the large part must go in the end, and then both small ones may stay as they were."""
    sizes = [{8: 300, 4: 160}, {8: 110, 4: 60}, {8: 110, 4: 60}]
    assert choose_bits(sizes, [{4: 9.0}, {4: 0.1}, {4: 0.2}], 420) == (8, 4, 4)
    assert choose_bits(sizes, [{4: 9.0}, {4: 0.1}, {4: 0.2}], 380) == (4, 8, 8)


@pytest.mark.parametrize("predicts", [True, False])
def test_what_is_measured_is_one_part_at_a_time(llama: Exported, *, predicts: bool) -> None:
    """Fewer bits move what is computed further, those of every block do, and the model is afterwards as it was."""
    adapted = llama.program.adapted
    model, _ = emulator(adapted, llama.manifests["fp32"].level)
    base = model.get_base_model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    whole = copy.deepcopy(base)
    rounding, blocks = Rounding(whole), (blocks_of(one.base_model) for one in (base, whole))
    parts = [
        [(p, partial(rounding.of, w)) for p, w in zip(own.parameters(), its.parameters(), strict=True) if p.ndim == 2]
        for own, its in zip(*blocks, strict=True)
    ]
    errors = sensitivities(base, parts, [8, 4], public_rows(), predicts=predicts)
    assert len(errors) == 4
    assert all(0 < found[8] < found[4] < 1 for found in errors)
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())


def both(program: Program, level: LevelSpec) -> tuple[nn.Module, Rounding]:
    """The model of a level, and the same in 32 bits with how it is rounded."""
    levels = (level, dataclasses.replace(level, bits=32))
    model, whole = (emulator(program.adapted, one)[0].get_base_model() for one in levels)
    return model, Rounding(whole)


def test_equal_bits_are_the_plain_level(exported: Exported) -> None:
    """A level whose blocks are all held in its own bits has the plain level's files, and its walk."""
    plain = exported.manifests["int8"]
    level = dataclasses.replace(plain.level, layer_bits=(8,) * len(plain.level.layers))
    manifest = ArtifactWriter(exported.program, exported.store).write(level, 16)
    assert manifest == dataclasses.replace(plain, level=level)


def test_a_mixed_level_is_made_of_plain_ones(any_exported: Exported) -> None:
    """Every tensor file and graph is that of a plain level of its bits; parity holds, and the bound on the bytes."""
    plain, level = any_exported.manifests, any_exported.manifests["int8"].level
    model, rounding = both(any_exported.program, level)
    most, least = (_tensors_bytes(any_exported, plain[name].level) for name in ("int8", "int4"))
    bound, public = (most + least) / 2 / MB, public_for(any_exported.program.adapted.foundation)
    mixed = with_mixed_bits(
        any_exported.program, level, part_errors(any_exported.program, level, model, rounding, public), bound
    )
    assert {mixed.bits, *mixed.layer_bits} == {8, 4}
    assert _tensors_bytes(any_exported, mixed) <= bound * MB
    manifest = ArtifactWriter(any_exported.program, any_exported.store).write(mixed, 16)
    assert set(manifest.files.values()) <= {*plain["int8"].files.values(), *plain["int4"].files.values()}
    require_parity(check_parity(Oracle(any_exported.program.adapted), any_exported.store, manifest))


def test_blocks_that_train_whole_have_no_bits_to_give(exports: Exports) -> None:
    """They are held in full whatever their bits: those of what does not train are what a bound is kept by."""
    exported = exports.of("llama", AdapterRequest("layers", last=2))
    level, program = exported.manifests["int8"].level, exported.program
    model, rounding = both(program, level)
    most, least = (_tensors_bytes(exported, exported.manifests[name].level) for name in ("int8", "int4"))
    bound = (most + least) / 2 / MB
    mixed = with_mixed_bits(program, level, part_errors(program, level, model, rounding, public_rows()), bound)
    assert {mixed.bits, *mixed.layer_bits[:2]} == {8, 4}
    assert mixed.layer_bits[2:] == (8, 8)
    manifest = ArtifactWriter(program, exported.store).write(mixed, 16)
    require_parity(check_parity(Oracle(program.adapted), exported.store, manifest))


def test_a_bound_is_a_bound(any_exported: Exported) -> None:
    """Bytes are counted as they are written: what the most bits take is enough for them, a byte less is not, and a byte
    less than what the fewest take is refused.
    """
    program, level = any_exported.program, any_exported.manifests["int8"].level
    model, rounding = both(program, level)
    public = public_for(program.adapted.foundation)
    most, least = (_tensors_bytes(any_exported, any_exported.manifests[name].level) for name in ("int8", "int4"))

    errors = part_errors(program, level, model, rounding, public)

    def held(size_bytes: int) -> set[int]:
        found = with_mixed_bits(program, level, errors, (size_bytes + 0.5) / MB)
        return {found.bits, *found.layer_bits}

    assert held(most) == {8}
    assert held(most - 1) == {8, 4}
    assert held(least) - {8} == {4}  # what has no matrices, as the embedding of images, has no bits to give
    with pytest.raises(ExportError, match=r"the frozen tensors take 0.0 MB even in 4 bits: give more MB"):
        held(least - 1)


def _tensors_bytes(exported: Exported, level: LevelSpec) -> int:
    """Bytes of all frozen tensors of a level, each once."""
    manifest = ArtifactWriter(exported.program, exported.store).write(level, 16)
    names = {segment.tensors for segment in manifest.walk}
    names |= {loss.tensors for loss in (manifest.vocabulary_loss, manifest.classes_loss) if loss is not None}
    paths = [exported.store.path(manifest.files[name].sha256) for name in names]
    return sum(array.nbytes for path in paths for array in read_tensors(path).values())
