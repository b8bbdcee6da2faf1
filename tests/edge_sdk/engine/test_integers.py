"""Products in integers are used where this device is faster with them, and can be trusted with them."""

from __future__ import annotations

import dataclasses

import pytest

from edge_sdk.engine import integers
from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.integers import back_ms, saturates
from edge_sdk.engine.plan import EXACT, INTEGERS, Limits, Plan, planned
from edge_sdk.engine.settle import settle
from edge_sdk.engine.train import batch_gradient
from tests.edge_sdk.engine.samples import batch_of, random_adapter, relative_error, walk_of
from tests.edge_sdk.samples import MB

LIMITS = Limits(4, 16, 2000 * MB, 1, integers=True)


def promising(artifact: Artifact) -> Artifact:
    """The artifact with costs by which blocks keep, and go back in integers, here the exact graph by another name."""
    manifest = artifact.manifest
    block = manifest.structures["block"]
    keeping = next(one for one in block.keepings if one.bits == EXACT)
    costs = [
        dataclasses.replace(cost, time_ms=0.0 if cost.graph in {keeping.forward, keeping.backward_integers} else 1.0)
        for cost in manifest.costs
    ]
    files = {**manifest.files, keeping.backward_integers: manifest.files[keeping.backward]}
    return dataclasses.replace(artifact, manifest=dataclasses.replace(manifest, costs=tuple(costs), files=files))


def measures(monkeypatch: pytest.MonkeyPatch, *, exact_ms: float, integers_ms: float, saturating: bool = False) -> None:
    """A processor that takes so long for either way back: a real one's times of a model so small are noise."""
    monkeypatch.setattr(integers, "back_ms", lambda _walk, _tokens: (exact_ms, integers_ms))
    monkeypatch.setattr(integers, "saturates", lambda _machine, _cpuinfo: saturating)


@pytest.mark.parametrize(
    ("exact_ms", "integers_ms", "saturating", "expected"),
    [(2.0, 1.0, False, INTEGERS), (1.0, 2.0, False, EXACT), (1.0, 1.0, False, EXACT), (2.0, 1.0, True, EXACT)],
)
def test_what_is_no_faster_here_is_not_used(
    classifier: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    *,
    exact_ms: float,
    integers_ms: float,
    saturating: bool,
    expected: int,
) -> None:
    """A manifest's promise that integers are fast is tried out: where it does not hold, gradients are exact."""
    artifact = promising(classifier)
    assert planned(artifact.manifest, LIMITS).back_bits == INTEGERS
    measures(monkeypatch, exact_ms=exact_ms, integers_ms=integers_ms, saturating=saturating)
    walk = settle(artifact, LIMITS, lambda: None)
    assert walk.plan.back_bits == expected
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    names = list(artifact.manifest.trained_shapes())
    _, found = batch_gradient(walk, adapter, batch, names)
    assert relative_error(found, batch_gradient(walk_of(classifier), adapter, batch, names)[1]) < 1e-4


def test_nothing_is_tried_that_was_not_allowed(classifier: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast integers are, gradients are exact for who did not allow anything else."""
    measures(monkeypatch, exact_ms=2.0, integers_ms=1.0)
    walk = settle(promising(classifier), dataclasses.replace(LIMITS, integers=False), lambda: None)
    assert walk.plan.back_bits == EXACT


@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_a_trial_leaves_the_walk_as_it_was(classifier: Artifact, kept_blocks: int) -> None:
    """Both ways take some time, and the walk follows the plan that it followed before."""
    plan = Plan(2, 32, kept_blocks, back_bits=INTEGERS)
    walk = walk_of(classifier, plan)
    assert all(time_ms > 0 for time_ms in back_ms(walk, 16))
    assert walk.plan == plan


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx2 fma", True),
        ("x86_64", "", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni", False),
        ("aarch64", "Features\t: fp asimd", False),
    ],
)
def test_processors_whose_sums_saturate_are_known(*, machine: str, flags: str, expected: bool) -> None:
    """x86 without dot products of bytes adds pairs of them in 16 bits."""
    assert saturates(machine, f"processor\t: 0\nmodel name\t: one\n{flags}\nbugs\t\t:\n") is expected
