"""Bridges in the place of dropped blocks: what they are fitted to, on both ways, and what they leave alone."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from edge_sdk.wire.manifest import LevelSpec, Refit, Surgery
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged
from export.compress.bridges import Bridge, bridges_of, fit_back, fit_there, gradients, put_bridges
from export.compress.depth import bridged
from export.compress.distill import distil, loss_of_outcome
from export.compress.states import Imitation
from export.compress.surgery import operated_model
from export.emulator import emulator
from export.fitting import fit, read_fitted
from export.foundation import Foundation
from export.parity import Oracle, check_parity, require_parity
from export.parts import backbone_of, blocks_of, keep_layers
from export.program import Adapted, adapt, capture_program
from export.public import arguments_of, mask_of, seen, token_losses
from tests.export.conftest import FAMILIES, Exports, public_for
from tests.export.test_fitting import off, opened


def test_where_bridges_stand() -> None:
    """Behind each kept layer that a dropped one follows, the last layers included."""
    assert bridged((0, 1, 2), 3) == ()
    assert bridged((0, 2, 3), 6) == (0, 3)
    assert bridged((1,), 2) == ()  # nothing stands in for what is before the first


def test_the_two_ways_are_apart() -> None:
    """There y = x + A n(x) + b, n(x) of mean square 1; back dx = dy + B dy. Before it is fitted it changes nothing."""
    torch.manual_seed(0)
    bridge, x, dy = Bridge(4), torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    assert bridge(x).equal(x)
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.normal_()
    y = bridge(x)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(y, x + unit @ bridge.states.T + bridge.shift, rtol=1e-5, atol=1e-5)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dy + dy @ bridge.gradients.T)
    assert all(parameter.grad is None for parameter in bridge.parameters())


def with_bridges(foundation: Foundation, *dropped: int) -> Imitation:
    """The model, and the same with fewer layers and bridges that are not fitted yet."""
    teacher, layers = foundation.load(), tuple(k for k in range(foundation.spec.layers) if k not in dropped)
    student = copy.deepcopy(teacher)
    put_bridges(student, bridged(layers, foundation.spec.layers))
    keep_layers(student, layers)
    return Imitation(foundation, student, teacher, layers)


@pytest.mark.parametrize("name", FAMILIES)
def test_states_come_nearer(exports: Exports, name: str) -> None:
    """Of every family, also where blocks end in a norm; what is not a bridge's stays as it is, to the bit."""
    pair = with_bridges(opened(exports, name), 1, 2)
    public = public_for(pair.foundation, 40)
    before = off(pair, public)
    fit_there(pair, public)
    assert off(pair, public) < 0.97 * before
    own = [p for n, p in pair.student.named_parameters() if "bridge" not in n]
    kept = copy.deepcopy(pair.teacher)
    keep_layers(kept, pair.layers)
    assert all(one.equal(other) for one, other in zip(own, kept.parameters(), strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_come_nearer(exports: Exports, name: str) -> None:
    """At its beginning, from that at its end, over the rows that it was fitted to: nearer than unchanged."""
    pair = with_bridges(opened(exports, name), 1, 2)
    public = public_for(pair.foundation, 40)
    fit_back(pair, gradients(pair, public))
    blocks = blocks_of(backbone_of(pair.teacher))
    given = arguments_of(pair.teacher, public)
    with seen(list(blocks)) as states:
        logits = pair.teacher(**given).logits
    mask = mask_of(given, states[0][1])
    loss = token_losses(logits, given).sum()
    wanted, begun = (one[mask] for one in torch.autograd.grad(loss, [states[0][1], states[2][1]]))
    found = begun + begun @ pair.student.get_parameter(name_of_gradients(pair)).T
    assert (found - wanted).square().sum() < 0.97 * (begun - wanted).square().sum()


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_training_comes_nearer_in_the_end(exports: Exports, name: str) -> None:
    """To what the whole model predicts, or to its last states; B and the kept blocks stay as they are.

    From bridges that change no state: a fit in closed form leaves little to do in models so small.
    """
    pair = with_bridges(opened(exports, name), 1, 2)
    public = public_for(pair.foundation, 40)
    weights = [weight for bridge in bridges_of(pair).values() for weight in (bridge.states, bridge.shift)]
    was, before = copy.deepcopy(pair.student), loss_of_outcome(pair, public).detach()
    distil(pair, weights, public, Refit(40, 30, 3e-3), 0, lambda _: None, loss_of_outcome)
    assert loss_of_outcome(pair, public) < 0.9 * before
    changed = [name for name, p in pair.student.named_parameters() if not p.equal(was.get_parameter(name))]
    assert [name.rpartition(".")[2] for name in changed] == ["states", "shift"]
    assert not any(p.requires_grad for p in pair.student.parameters())


def test_while_it_trains_its_way_back_is_its_derivative() -> None:
    """By torch's own differences, in double precision."""
    torch.manual_seed(0)
    bridge, x = Bridge(4).double(), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.normal_()
    bridge.requires_grad_()
    a, b = bridge.states, bridge.shift

    def crossed(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(bridge, {"states": a, "shift": b}, x)
        return y

    assert torch.autograd.gradcheck(crossed, (x, a, b))


def name_of_gradients(pair: Imitation) -> str:
    """Of the only bridge."""
    (name,) = (name for name, _ in pair.student.named_parameters() if name.endswith("bridge.gradients"))
    return name


def with_adapter(exports: Exports, name: str, surgery: Surgery, adapter: AdapterRequest | None = None) -> Adapted:
    """A tiny model of a family with bridges, as a build has it."""
    foundation = opened(exports, name)
    asked = (adapter or exports[name].program.adapted.request).resolved(foundation)
    return adapt(foundation, asked, 0, operated_model(foundation, surgery, asked.targets))


@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_have_both_ways(exports: Exports, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Parity holds in 32 bits and in 8; of all files with tensors, the bridge's alone is not the full model's.

    What is read back of the files is what was fitted, as it was rounded.
    """
    exported = exports[name]
    total = exported.program.adapted.foundation.spec.layers
    layers = (0, *range(2, total))
    surgery = Surgery(bridges=bridged(layers, total))
    adapted = with_adapter(exports, name, surgery)
    program, public = capture_program(adapted, lambda _: None), public_for(adapted.foundation, 20)
    operated = operated_model(adapted.foundation, surgery, ())
    fitted = fit(adapted, operated, _level(layers, 32, surgery), public, 0, print)
    assert fitted.keys() == {"bridge.0"}
    assert fitted["bridge.0"].keys() == {"states", "shift", "gradients"}
    assert all(np.abs(array).max() > 0 for array in fitted["bridge.0"].values())
    with staged(tmp_path_factory.mktemp("bridged") / "artifact") as store:
        for bits, plain in ((32, "fp32"), (8, "int8")):
            level = _level(layers, bits, surgery)
            manifest = ArtifactWriter(program, store).write(level, 16, fitted)
            other = exported.manifests[plain]
            assert [segment.name for segment in manifest.walk][1:4] == ["block.0", "bridge.0", "block.2"]
            tensors = {n: blob for n, blob in manifest.files.items() if n.endswith(".safetensors")}
            assert {n for n, blob in tensors.items() if blob != other.files.get(n)} == {"bridge.0.safetensors"}
            require_parity(check_parity(Oracle(adapted), store, manifest))
            models = (emulator(adapted, level, one)[0] for one in (fitted, read_fitted(adapted, store, manifest)))
            for one, two in zip(*(model.parameters() for model in models), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def _level(layers: tuple[int, ...], bits: int, surgery: Surgery) -> LevelSpec:
    return LevelSpec("bridged", layers, layers, bits, surgery=surgery, refit=Refit(20))


@pytest.mark.slow
def test_behind_blocks_that_train_whole(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A block that peft keeps a copy of has one bridge; parity holds, with a layer held in fewer bits, too."""
    surgery = Surgery(bridges=(0,))
    adapted = with_adapter(exports, "gpt2", surgery, AdapterRequest("layers", first=1, last=1))
    layers = (0, *range(2, adapted.foundation.spec.layers))
    level = dataclasses.replace(_level(layers, 8, surgery), layer_bits=(4, *[8] * (len(layers) - 1)))
    operated = operated_model(adapted.foundation, surgery, ())
    fitted = fit(adapted, operated, level, public_for(adapted.foundation, 20), 0, print)
    with staged(tmp_path_factory.mktemp("bridged") / "artifact") as store:
        manifest = ArtifactWriter(capture_program(adapted, lambda _: None), store).write(level, 16, fitted)
        found = {segment.name: segment for segment in manifest.walk}
        assert (found["bridge.0"].structure, found["bridge.0"].trains) == ("bridge.4bits", False)
        assert found["block.0"].trains
        require_parity(check_parity(Oracle(adapted), store, manifest))


def test_bridges_never_train(exports: Exports) -> None:
    """Not even of a block that trains whole: the adapter is the full model's."""
    surgery, request = Surgery(bridges=(0,)), AdapterRequest("full")
    adapted = with_adapter(exports, "gpt2", surgery, request)
    plain = adapt(opened(exports, "gpt2"), request, 0)
    assert adapted.parameters.keys() == plain.parameters.keys()


def test_a_bridge_behind_a_dropped_layer_is_refused() -> None:
    """No level could have it."""
    with pytest.raises(ValueError, match="has bridges behind layers it does not keep"):
        LevelSpec("odd", (0, 2), (), 32, surgery=Surgery(bridges=(1,)))
