"""The way that an adapter goes: where it leads, who goes along, and what is fitted on it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.wire.manifest import LevelSpec, Refit, Surgery, TaskType
from export.adapters import AdapterRequest, adapter_arrays
from export.compress.surgery import operated_model
from export.compress.way import FARTHEST, Way, has_way, shares, to_the_end
from export.emulator import Fitted
from export.evaluate import Tokens
from export.fitting import fit
from export.program import Adapted, adapt
from tests.export.conftest import FAMILIES, LM, Exports, public_for
from tests.export.test_bridges import with_adapter
from tests.export.test_fitting import opened

SURGERY = Surgery(bridges=(0,))


def fitted(exports: Exports, name: str, refit: Refit) -> tuple[Adapted, Fitted]:
    """What a level without its second block, fitted to it, has of its own; and the model it is a level of."""
    adapted = with_adapter(exports, name, SURGERY)
    layers = (0, *range(2, adapted.foundation.spec.layers))
    level = LevelSpec("short", layers, layers, 32, surgery=SURGERY, refit=refit)
    operated = operated_model(adapted.foundation, SURGERY, ())
    return adapted, fit(adapted, operated, level, public_for(adapted.foundation, 20), 0, lambda _: None)


def test_all_models_are_as_far() -> None:
    """At the beginning, at the end, between, and beyond."""
    models = [{"a": torch.nn.Parameter(torch.zeros(2))} for _ in range(2)]
    way = Way({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 2.0])}, models)
    for share, first in ((0.0, 1.0), (1.0, 3.0), (0.5, 2.0), (1.5, 4.0)):
        way.go(share)
        assert all(model["a"].tolist() == [first, 2.0] for model in models)


def test_every_third_share_is_the_beginning() -> None:
    """The others are anywhere on the way, the same for the same seed."""
    first, same, other = (list(itertools.islice(shares(seed), 30)) for seed in (0, 0, 1))
    assert first == same != other
    assert first[::3] == [0.0] * 10
    rest = [share for k, share in enumerate(first) if k % 3]
    assert all(0 < share < FARTHEST for share in rest)


def test_the_way_leads_down(exports: Exports) -> None:
    """On public rows the whole model predicts better at its end; what is not of the adapter stays, to the bit."""
    foundation = opened(exports, "llama")
    adapted = adapt(foundation, exports["llama"].program.adapted.request, 0)
    public, was = public_for(foundation, 20), copy.deepcopy(adapted.base)
    begin, end = to_the_end(adapted.base, adapted.parameters, public, 0)
    assert all(end[name].equal(parameter) for name, parameter in adapted.parameters.items())
    assert any(not end[name].equal(begin[name]) for name in begin)
    assert isinstance(public, Tokens)
    ids = torch.from_numpy(public.ids.astype(np.int64))
    with torch.no_grad():
        before, after = (model(input_ids=ids, labels=ids).loss for model in (was, adapted.base))
    assert after < before
    own = {id(parameter) for parameter in adapted.parameters.values()}
    for (name, parameter), other in zip(adapted.base.named_parameters(), was.parameters(), strict=True):
        assert id(parameter) in own or parameter.equal(other), name


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_distilled_bridges_are_fitted_further(exports: Exports, name: str) -> None:
    """A and b differ from the closed form; B where there is a way. The same seed gives the same; the model stays."""
    _, closed = fitted(exports, name, Refit(20))
    adapted, found = fitted(exports, name, Refit(20, 4, 1e-3))
    _, again = fitted(exports, name, Refit(20, 4, 1e-3))
    assert found.keys() == closed.keys() == {"bridge.0"}
    one, other, plain = (arrays["bridge.0"] for arrays in (found, again, closed))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not np.array_equal(one["states"], plain["states"])
    assert np.array_equal(one["gradients"], plain["gradients"]) is (FAMILIES[name][1] is not LM)
    fresh = adapter_arrays(with_adapter(exports, name, SURGERY).parameters)
    assert all(np.array_equal(array, fresh[key]) for key, array in adapter_arrays(adapted.parameters).items())


def test_who_has_a_way() -> None:
    """LoRA before a language model: public rows have no labels, and no other kind was measured."""
    assert has_way("lora", TaskType.CAUSAL_LM)
    assert not has_way("lora", TaskType.SEQUENCE_CLASSIFICATION)
    assert not has_way("bias", TaskType.CAUSAL_LM)


def test_the_way_begins_where_devices_begin(exports: Exports) -> None:
    """An adapter that is not new, such as one from a sparse checkpoint, has another way."""
    adapted = with_adapter(exports, "llama", SURGERY)
    layers = (0, *range(2, adapted.foundation.spec.layers))
    level = LevelSpec("short", layers, layers, 32, surgery=SURGERY, refit=Refit(20, 4, 1e-3))
    operated, public = operated_model(adapted.foundation, SURGERY, ()), public_for(adapted.foundation, 20)
    new = fit(adapted, operated, level, public, 0, lambda _: None)["bridge.0"]
    with torch.no_grad():
        for parameter in adapted.parameters.values():
            parameter.add_(0.1)
    before = adapter_arrays(adapted.parameters)
    begun = fit(adapted, operated, level, public, 0, lambda _: None)["bridge.0"]
    assert not any(np.array_equal(begun[key], new[key]) for key in new)
    assert all(np.array_equal(array, before[key]) for key, array in adapter_arrays(adapted.parameters).items())


def test_an_adapter_of_late_layers_has_a_way(exports: Exports) -> None:
    """Below it nothing trains, and yet the states there have gradients, to which bridges are fitted."""
    late = AdapterRequest("lora", 2, 4.0, ("3.self_attn.q_proj",))
    adapted = with_adapter(exports, "llama", SURGERY, late)
    level = LevelSpec("short", (0, 2, 3), (0, 2, 3), 32, surgery=SURGERY, refit=Refit(20, 4, 1e-3))
    operated, public = operated_model(adapted.foundation, SURGERY, ()), public_for(adapted.foundation, 20)
    found = fit(adapted, operated, level, public, 0, lambda _: None)["bridge.0"]
    assert all(np.abs(array).max() > 0 for array in found.values())


def test_a_layer_that_does_not_train_has_no_way(exports: Exports) -> None:
    """A level that trains its last layer alone is fitted along another way than one that trains all."""
    adapted = with_adapter(exports, "llama", SURGERY)
    layers = (0, *range(2, adapted.foundation.spec.layers))
    level = LevelSpec("short", layers, layers, 32, surgery=SURGERY, refit=Refit(20, 4, 1e-3))
    operated, public = operated_model(adapted.foundation, SURGERY, ()), public_for(adapted.foundation, 20)
    whole, last = (
        fit(adapted, operated, one, public, 0, lambda _: None)["bridge.0"]["states"]
        for one in (level, replace(level, trained_layers=layers[-1:]))
    )
    assert not np.array_equal(whole, last)
