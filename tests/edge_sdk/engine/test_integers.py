"""Products in integers are used where this device is faster with them, and can be trusted with them."""

from __future__ import annotations

import dataclasses

import pytest

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.integers import back_ms, saturates
from edge_sdk.engine.plan import EXACT, INTEGERS, Plan
from edge_sdk.engine.settle import Limits, planned, settle
from edge_sdk.engine.train import batch_gradient
from edge_sdk.wire.manifest import Cost
from tests.edge_sdk.engine.samples import batch_of, random_adapter, relative_error, walk_of
from tests.edge_sdk.samples import MB

LIMITS = Limits(4, 16, 2000 * MB, 1, integers=True)


def promising(artifact: Artifact, *, same: bool) -> Artifact:
    """The artifact with costs by which integers are taken; with `same` its integer graphs are the exact ones."""
    manifest = artifact.manifest
    costs = [dataclasses.replace(cost, time_ms=0.0) if "integers" in cost.graph else cost for cost in manifest.costs]
    costs = [slow(cost) if "backward" in cost.graph and "integers" not in cost.graph else cost for cost in costs]
    files = dict(manifest.files)
    for name in [name for name in files if name.endswith(".integers.onnx")] if same else ():
        files[name] = files[name.replace(".integers.", ".")]
    return dataclasses.replace(artifact, manifest=dataclasses.replace(manifest, costs=tuple(costs), files=files))


def slow(cost: Cost) -> Cost:
    """A cost a hundred times as high."""
    return dataclasses.replace(cost, time_ms=100 * cost.time_ms)


def test_what_is_no_faster_here_is_not_used(classifier: Artifact) -> None:
    """Whatever the manifest promised: with integer graphs that take as long as the exact ones, gradients are exact."""
    artifact = promising(classifier, same=True)
    assert planned(artifact.manifest, LIMITS).back_bits == INTEGERS
    walk = settle(artifact, LIMITS, lambda: None)
    assert walk.plan.back_bits == EXACT
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    names = list(artifact.manifest.trained_shapes())
    _, found = batch_gradient(walk, adapter, batch, names)
    assert relative_error(found, batch_gradient(walk_of(classifier), adapter, batch, names)[1]) < 1e-4


def test_nothing_is_tried_that_was_not_allowed(classifier: Artifact) -> None:
    """However fast integers are said to be, gradients are exact for who did not allow anything else."""
    walk = settle(promising(classifier, same=False), dataclasses.replace(LIMITS, integers=False), lambda: None)
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
