"""What every policy keeps, whatever it is shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from coordinator.policy.fitting import Known
from coordinator.policy.registry import KINDS, policy_of
from coordinator.policy.settings import SETTINGS, PolicyConfig, PolicyName
from coordinator.policy.types import Decision, Observation, Policy
from tests.coordinator.policy.observations import LEVELS, objection, sequences

POLICIES = [policy_of(PolicyConfig(name=name, level=LEVELS[1])) for name in KINDS]


def decisions(policy: Policy[Any], shown: list[Observation]) -> list[Decision]:
    """What it decides, one after the other."""
    state, found = policy.initial(), []
    for observation in shown:
        decision, state = policy.decide(observation, state)
        found.append(decision)
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=[name.value for name in KINDS])
@given(shown=sequences())
def test_decisions_are_valid(policy: Policy[Any], shown: list[Observation]) -> None:
    """Whatever was shown: only devices that are there, levels that fit or the last resort, finite shares, and no
    exception; and the same again when the same is shown again.
    """
    found = decisions(policy, shown)
    known = Known()
    for decision, observation in zip(found, shown, strict=True):
        known = known.after(observation.answers)
        assert objection(decision, observation, known) is None
    assert decisions(policy, shown) == found


@pytest.mark.parametrize("policy", POLICIES, ids=[name.value for name in KINDS])
@given(shown=sequences())
def test_an_answer_shown_twice_changes_nothing(policy: Policy[Any], shown: list[Observation]) -> None:
    """Answers are facts: a coordinator that does not know whether it showed them shows them again."""
    twice = [
        Observation(seen.devices, seen.levels, (*seen.answers, *seen.answers), seen.fleet, seen.terms) for seen in shown
    ]
    assert decisions(policy, twice) == decisions(policy, shown)


def test_every_name_has_a_policy_with_its_settings() -> None:
    """The settings that the configuration lists are the fields of the policy, with the same defaults."""
    assert set(KINDS) == set(PolicyName)
    for name, kind in KINDS.items():
        if not isinstance(kind, type):  # it makes a policy from a file, and the file has the rest
            continue
        config = PolicyConfig(name=name, level="fp32")
        policy = policy_of(config)
        settings = {setting: getattr(policy, setting) for setting in getattr(type(policy), "__slots__", ())}
        assert settings == {setting: getattr(config, setting) for setting in SETTINGS.get(name, ())}
