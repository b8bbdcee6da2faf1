"""Whatever a policy says, what comes of it is a decision that could be carried out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.fitting import Known
from coordinator.policy.hard_limits import MAX_SHARE, MIN_SHARE, HardLimits, limited
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Answer, Choice, Decision, DeviceView, Level, Observation, Outcome, Terms
from edge_sdk.wire.messages import MIN_POWER, DeltaCodec

LEVELS = (Level("large", 300, model="l"), Level("middle", 200, model="m"), Level("small", 100, model="s"))
DEVICES = (DeviceView("a", 350, threads=4), DeviceView("b", 150), DeviceView("tiny", 50))
TERMS = Terms(codecs=(DeltaCodec.INT8, DeltaCodec.FP32))
SEEN = Observation(DEVICES, LEVELS, (), DEVICES, TERMS)

JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.text(max_size=3), st.floats(), st.integers(), st.lists(st.integers(), max_size=2), st.booleans()
)
NUMBERS = st.sampled_from([0.0, -1.0, 0.5, 1.0, 2.0, math.nan, math.inf, 1, True, 1e300])
CHOICES = st.builds(
    Choice,
    st.sampled_from(["large", "middle", "small", "unheard of"]) | JUNK,
    st.sampled_from([None, *DeltaCodec]) | JUNK,
    NUMBERS | JUNK,
    NUMBERS | JUNK,
)
GARBAGE = st.one_of(
    JUNK,
    st.builds(Decision, JUNK, JUNK),
    st.builds(
        Decision,
        st.dictionaries(st.sampled_from(["a", "b", "tiny", "stranger"]) | st.integers(), CHOICES | JUNK),
        st.lists(st.text(max_size=3), max_size=1).map(tuple) | JUNK,
    ),
)


class Says:
    """A policy that says what it was told to say."""

    def __init__(self, what: object) -> None:
        self.what = what

    def initial(self) -> int:
        """How many answers it was shown."""
        return 0

    def decide(self, observation: Observation, state: int) -> tuple[Decision, int]:
        """Whatever it is, or an error."""
        if isinstance(self.what, Exception):
            raise self.what
        return self.what, state + len(observation.answers)  # type: ignore[return-value]


@given(GARBAGE)
def test_any_garbage_makes_a_valid_decision(garbage: object) -> None:
    """No device, level, codec or number that there is not comes through, nothing too large, and it never raises."""
    policy = HardLimits(Says(garbage))
    decision, _ = policy.decide(SEEN, policy.initial())
    budgets, needs = {d.name: d.budget_bytes for d in DEVICES}, {level.name: level.needs_bytes for level in LEVELS}
    for name, choice in decision.choices.items():
        assert needs[choice.level] <= budgets[name] or name == "tiny"
        assert choice.codec is None or choice.codec in TERMS.codecs
        assert MIN_SHARE <= choice.share <= MAX_SHARE
        assert MIN_POWER <= choice.power <= 1
    assert limited(decision, SEEN, Known()) == decision, "a valid decision stays as it is"


def test_what_is_dropped_is_said() -> None:
    """A device whose choice breaks a limit sits out; the others get what they were given."""
    good = Choice("small", DeltaCodec.FP32, 2.0, 0.5)
    said = Decision({"a": good, "b": Choice("large"), "c": good}, ("the policy's own word",))
    decision, _ = HardLimits(Says(said)).decide(SEEN, HardLimits(Says(said)).initial())
    assert decision.choices == {"a": good}
    assert decision.notes[0] == "the policy's own word"
    assert decision.notes[1].startswith("b: its choice is dropped, level large needs")
    assert decision.notes[2].startswith("c: its choice is dropped, nobody asked")


def test_the_smallest_may_be_tried_once_where_nothing_fits() -> None:
    """As for largest-that-fits: only the device knows, and its answer is the last word."""
    policy = HardLimits(Says(Decision({"tiny": Choice("small")})))
    decision, state = policy.decide(SEEN, policy.initial())
    assert decision.choices == {"tiny": Choice("small")}
    over = Answer("tiny", "small", Outcome.OVER_BUDGET, 50, 90)
    decision, _ = policy.decide(Observation(DEVICES, LEVELS, (over,), DEVICES, TERMS), state)
    assert decision.choices == {}


def test_a_policy_that_fails_is_stood_in_for() -> None:
    """Largest-that-fits decides, and says so; the policy sees the answers that it missed when it is asked again."""
    policy = Says(ValueError("no such weight"))
    guarded = HardLimits(policy)
    answer = Answer("a", "large", Outcome.OVER_BUDGET, 350, 400)
    seen = Observation(DEVICES, LEVELS, (answer,), DEVICES, TERMS)
    decision, state = guarded.decide(seen, guarded.initial())
    assert decision.choices == LargestThatFits().decide(seen, Known())[0].choices
    assert decision.notes == ("Says failed, largest-that-fits decides: ValueError: no such weight",)
    policy.what = Decision({"a": Choice("large"), "b": Choice("small")})
    decision, state = guarded.decide(SEEN, state)
    assert state.state == 1
    assert decision.choices == {"b": Choice("small")}, "what was over its budget stays known meanwhile"


@given(st.dictionaries(st.sampled_from("abc"), st.integers(50, 400), min_size=1))
def test_largest_that_fits_is_never_limited(budgets: dict[str, int]) -> None:
    """What the default policy decides is within the limits, whatever the fleet."""
    devices = tuple(DeviceView(name, budget) for name, budget in budgets.items())
    seen, policy = Observation(devices, LEVELS, (), devices, TERMS), HardLimits(LargestThatFits())
    decision, _ = policy.decide(seen, policy.initial())
    assert decision == LargestThatFits().decide(seen, Known())[0]


@given(st.integers(0, 4), st.sets(st.sampled_from("ab")))
def test_a_round_is_given_the_devices_that_it_needs(least: int, chosen: set[str]) -> None:
    """Who is chosen stays; others that a level fits join until there are enough, and the decision says so."""
    terms = replace(TERMS, least=least)
    policy = HardLimits(Says(Decision({name: Choice("small") for name in sorted(chosen)})))
    decision, _ = policy.decide(replace(SEEN, terms=terms), policy.initial())
    assert chosen <= decision.choices.keys() <= {"a", "b"}
    assert len(decision.choices) == max(len(chosen), min(least, 2)), "tiny fits nothing, and is no help"
    resort = HardLimits(Says(Decision({"tiny": Choice("small"), **dict.fromkeys(sorted(chosen), Choice("small"))})))
    with_resort, _ = resort.decide(replace(SEEN, terms=terms), resort.initial())
    assert with_resort.choices.keys() == {*decision.choices, "tiny"}, "who tries a last resort does not count"
    assert any("join" in note for note in decision.notes) == (len(decision.choices) > len(chosen))
