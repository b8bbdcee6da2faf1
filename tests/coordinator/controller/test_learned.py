"""A trained policy decides validly, alike, for any fleet; and a file that is none is refused in one line."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from coordinator.controller.environment import SLOTS, WIDTHS, FleetEnv
from coordinator.controller.network import Branches, SetEncoder
from coordinator.controller.reward import Weights
from coordinator.controller.simulator import begin, observe, step
from coordinator.controller.trainer import POLICY
from coordinator.controller.training import CHECKPOINT, PROGRESS, Request, save, train
from coordinator.controller.worlds import around
from coordinator.policy.actions import CODECS
from coordinator.policy.arrays import Floats32
from coordinator.policy.encoder import SHAPES, scores
from coordinator.policy.estimates import Fetching
from coordinator.policy.features import LIMIT, features
from coordinator.policy.fitting import Known
from coordinator.policy.learned import FORMAT, MEANING, Learned, PolicyFileError, load_policy
from coordinator.policy.types import DeviceView, Observation, Terms
from tests.coordinator.controller.worlds import PROFILE, small_world


def arrays(seed: int = 0) -> dict[str, Floats32]:
    """A network that nobody trained."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}


def seen(count: int) -> Observation:
    """What a policy sees after two rounds."""
    world = small_world(count)
    state, policy = begin(world), Learned(arrays())
    memory = policy.initial()
    for _ in range(2):
        decision, memory = policy.decide(observe(world, state), memory)
        state, _ = step(world, state, decision)
    return observe(world, state)


def test_numpy_says_what_torch_says() -> None:
    """The network that is used is the one that was trained: equal scores, also where places of the batch are empty."""
    encoder, env = SetEncoder(), FleetEnv(lambda _rng: small_world(5))
    encoder.take(arrays())
    observed, _ = env.reset(seed=0)
    with torch.no_grad():
        padded, _ = encoder({name: torch.from_numpy(array)[None] for name, array in observed.items()})
    assert env._features is not None
    found = scores(arrays(), env._features)
    levels = len(PROFILE.levels)
    places = padded[0, :5].numpy()
    assert np.allclose(places[:, : 1 + levels], found.levels, atol=1e-4)
    assert np.allclose(places[:, WIDTHS[0] : WIDTHS[0] + len(CODECS)], found.codecs, atol=1e-4)
    assert np.allclose(places[:, -WIDTHS[-1] :], found.powers, atol=1e-4)


def test_who_sits_out_has_no_other_branch() -> None:
    """Neither the probability nor the entropy of an action knows of a codec that is never used."""
    logits = torch.randn(1, SLOTS, sum(WIDTHS))
    logits[..., 0] = 50.0  # everybody sits out
    branches = Branches(logits, None)
    actions = torch.zeros(1, SLOTS * len(WIDTHS))
    others = actions.clone().reshape(1, SLOTS, -1)
    others[..., 1:] = 1
    assert torch.allclose(branches.log_prob(actions), branches.log_prob(others.flatten(1)))
    assert branches.entropy().item() == pytest.approx(0.0, abs=1e-4)


def test_the_order_of_devices_means_nothing() -> None:
    """A set is a set: the scores of each device move with it."""
    observation = seen(6)
    turned = dataclasses.replace(observation, devices=observation.devices[::-1])
    one, other = (scores(arrays(), features(o, Known(), Fetching(o.levels))).levels for o in (observation, turned))
    # Ranks of devices that are equal go by their order: they are left out by having none that are.
    assert np.allclose(one, other[::-1], atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 40, 300])
def test_any_number_of_devices(count: int) -> None:
    """A network that was trained on a few serves many; at least one takes part, and all that do are within limits."""
    observation = seen(count)
    decision, _ = Learned(arrays()).decide(observation, Known())
    assert 1 <= len(decision.choices) <= count
    names = {level.name for level in observation.levels}
    for choice in decision.choices.values():
        assert choice.level in names
        assert choice.codec in observation.terms.codecs
        assert 0 < choice.share < np.inf
        assert 0 < choice.power <= 1


def test_the_same_observation_is_the_same_decision() -> None:
    """It draws, but from lots that the round and the file give: a round can be replayed."""
    observation = seen(12)
    first, second = (Learned(arrays(), seed=3).decide(observation, Known())[0] for _ in range(2))
    assert first == second


def test_nothing_known_and_nothing_sane() -> None:
    """Devices of which nothing is known, numbers that are none, no room for anything, nobody: still a decision."""
    levels, policy = PROFILE.levels, Learned(arrays())
    strange = DeviceView("a", 0, 0, float("nan"), 0, float("inf"), float("nan"), float("inf"))
    for devices in ((), (strange,), (DeviceView("b", 1 << 60),), (strange, DeviceView("b", 1 << 60))):
        for terms in (Terms(), Terms(loss=float("nan"), bandwidth_bytes_s=1e-9, deadline_s=1e-9)):
            decision, _ = policy.decide(Observation(devices, levels, (), devices, terms), Known())
            assert set(decision.choices) <= {device.name for device in devices}
    assert policy.decide(Observation((strange,), (), ()), Known())[0].choices == {}


def test_features_are_bounded() -> None:
    """Whatever the numbers, a network sees none beyond the limit."""
    observation = seen(5)
    wild = dataclasses.replace(
        observation,
        devices=tuple(
            dataclasses.replace(d, rate_bytes_s=10.0**k, slowness=10.0**-k, loss=1e30, examples=1 << 40)
            for k, d in enumerate(observation.devices)
        ),
    )
    found = features(wild, Known(), Fetching(wild.levels))
    for array in (found.devices, found.pairs, found.fleet):
        assert np.isfinite(array).all()
        assert np.abs(array).max() <= LIMIT


def replace_card(policy: Learned, **notes: object) -> Learned:
    """The policy with other notes in its card."""
    return dataclasses.replace(policy, card={**policy.card, **notes})


def written(path: pathlib.Path, **notes: str) -> pathlib.Path:
    """A policy file with other notes."""
    save_file(arrays(), path, metadata={"format": FORMAT, "meaning": MEANING, "card": "{}", **notes})
    return path


def test_a_policy_file_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    """With its card."""
    save(Learned(arrays(), {"steps": 7, "seed": 5}), tmp_path / "p")
    found = load_policy(tmp_path / "p")
    assert (found.card["steps"], found.seed) == (7, 5)
    assert all(np.array_equal(found.arrays[name], array) for name, array in arrays().items())


def test_what_is_no_policy_is_refused(tmp_path: pathlib.Path) -> None:
    """Missing, damaged, of another version, of other arrays, not finite: one line each."""
    good = written(tmp_path / "good")
    (tmp_path / "cut").write_bytes(good.read_bytes()[:100])
    written(tmp_path / "old", format="fedpeat-policy-0")
    written(tmp_path / "other", meaning="[]")
    written(tmp_path / "card", card="{")
    broken = load_file(good)
    broken["out.bias"] = np.array([np.nan], np.float32)
    save_file(broken, tmp_path / "nan", metadata={"format": FORMAT, "meaning": MEANING})
    save_file({"out": broken["out"]}, tmp_path / "few", metadata={"format": FORMAT, "meaning": MEANING})
    for name in ("missing", "cut", "old", "other", "nan", "few", "card"):
        with pytest.raises(PolicyFileError) as caught:
            load_policy(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_training_writes_a_policy_and_goes_on(tmp_path: pathlib.Path) -> None:
    """A short training leaves a file that decides, its progress, and a checkpoint from which it goes on."""
    request = Request(steps=128, places=2, rounds=64, batch=64, epochs=1, shown=2, imitated=1)
    train(request, around(PROFILE), Weights(), tmp_path, lambda _line: None)
    assert load_policy(tmp_path / POLICY).card["trained"]["steps"] == 128
    best = load_policy(tmp_path / POLICY)
    save(replace_card(best, reward=1e9), tmp_path / POLICY)
    lines: list[str] = []
    train(dataclasses.replace(request, steps=256), around(PROFILE), Weights(), tmp_path, lines.append, resume=True)
    steps = [int(row.split(",")[0]) for row in (tmp_path / PROGRESS).read_text().splitlines()[1:]]
    assert steps == sorted(steps)
    assert steps[-1] == 256
    assert load_policy(tmp_path / POLICY).card["reward"] == 1e9, "what is not better does not take its place"
    assert (tmp_path / CHECKPOINT).is_file()
    assert (tmp_path / "progress.png").is_file()
