"""Who is there, and who gets what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet import Fleet
from coordinator.policy.caff import Caff
from coordinator.policy.fitting import Known
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Answer, Decision, DeviceView, Level, Observation, Outcome
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.samples import make_hello, make_presence

LEVELS = (Level("large", 300, 50), Level("middle", 200, 20), Level("small", 100, 20))
POLICY = LargestThatFits()


def levels_of(decision: Decision) -> dict[str, str]:
    """The level of each device that takes part."""
    return {name: choice.level for name, choice in decision.choices.items()}


def chosen(budget: int, *answers: Answer, levels: tuple[Level, ...] = LEVELS) -> str | None:
    """What a device of that budget gets after those answers."""
    observation = Observation((DeviceView("d", budget),), levels, answers)
    return levels_of(POLICY.decide(observation, POLICY.initial())[0]).get("d")


def over(level: str, budget: int, needed: int) -> Answer:
    """The device went over its budget."""
    return Answer("d", level, Outcome.OVER_BUDGET, budget, needed)


def test_a_late_will_does_not_bury_the_successor() -> None:
    """The death of a session counts only while that session is the device's current one."""
    fleet = Fleet().with_hello(make_hello("d", session="old")).with_hello(make_hello("d", session="new"))
    assert fleet.with_presence(make_presence("d", online=False, session="old")).online()
    assert not fleet.with_presence(make_presence("d", online=False, session="new")).online()


def test_presence_of_a_stranger_is_nothing() -> None:
    """A device counts once it has said what it can do."""
    assert len(Fleet().with_presence(make_presence("d", online=True))) == 0


def test_a_device_comes_back() -> None:
    """Presence brings the same session back online, and a restarted coordinator has heard nobody yet."""
    fleet = Fleet().with_hello(make_hello("d")).with_presence(make_presence("d", online=False))
    assert fleet.with_presence(make_presence("d", online=True)).online()
    assert not Fleet().with_hello(make_hello("d")).with_all_offline().online()


def test_the_best_level_that_fits() -> None:
    """Best first, and the budget itself still fits."""
    assert [chosen(budget) for budget in (1000, 300, 299, 200, 150, 100)] == [
        *("large", "large", "middle", "middle", "small", "small"),
    ]


def test_the_ladder_is_the_configured_order() -> None:
    """`Best` is what comes first, not what needs most."""
    assert chosen(1000, levels=LEVELS[::-1]) == "small"


def test_the_smallest_is_offered_once_where_none_fits() -> None:
    """The device has the last word on the smallest level, and is not asked again while nothing changed."""
    assert chosen(64) == "small"
    assert chosen(64, over("small", 64, 90)) is None
    assert chosen(89, over("small", 64, 90)) is None
    assert chosen(90, over("small", 64, 90)) == "small"


def test_a_failure_makes_the_next_level_smaller() -> None:
    """Over budget at one level, the next one down is given; a larger budget brings the level back."""
    assert chosen(300, over("large", 300, 320)) == "middle"
    assert chosen(300, over("large", 300, 320), over("middle", 300, 310)) == "small"
    assert chosen(320, over("large", 300, 320)) == "large"


def test_a_measured_peak_that_says_nothing_still_counts() -> None:
    """A failure without a measured peak excludes the level at this budget all the same."""
    assert chosen(300, over("large", 300, 0)) == "middle"


def test_files_without_room_make_the_next_level_smaller() -> None:
    """A level that the store cannot hold is not offered again, nor one whose files are as large."""
    full = Answer("d", "large", Outcome.NO_SPACE, 30, 50)
    assert chosen(1000, full) == "middle"
    assert chosen(1000, full, Answer("d", "middle", Outcome.NO_SPACE, 10, 20)) is None


names = st.sampled_from([level.name for level in LEVELS])
answers = st.lists(st.builds(over, names, st.integers(50, 400), st.integers(0, 500)), max_size=8)


@given(st.integers(50, 400), answers)
def test_asking_ends(budget: int, past: list[Answer]) -> None:
    """Whatever was said before, a device that always goes over is offered each level at most once, then none."""
    state, offered = POLICY.decide(Observation((), LEVELS, tuple(past)), POLICY.initial())[1], []
    answer: tuple[Answer, ...] = ()
    for _ in range(len(LEVELS) + 1):
        decision, state = POLICY.decide(Observation((DeviceView("d", budget),), LEVELS, answer), state)
        if "d" not in decision.choices:
            break
        offered.append(decision.choices["d"].level)
        answer = (over(offered[-1], budget, 0),)
    assert len(offered) == len(set(offered)) <= len(LEVELS)
    assert "d" not in POLICY.decide(Observation((DeviceView("d", budget),), LEVELS, answer), state)[0].choices


@given(st.integers(50, 400), answers)
def test_repeating_an_answer_changes_nothing(budget: int, past: list[Answer]) -> None:
    """Answers are facts: shown twice, as after a restart, they mean the same."""
    assert chosen(budget, *past) == chosen(budget, *past, *past)


CAFF = Caff()
# Each model's levels train 1, 2, ... of its last layers; every layer that trains takes memory, and upload.
DEEP = tuple(Level(f"deep-{k}", 200 + 50 * k, 90, "deep", k, {DeltaCodec.FP32: 10 * k}) for k in (3, 2, 1))
SHALLOW = tuple(Level(f"shallow-{k}", 100 + 50 * k, 50, "shallow", k, {DeltaCodec.FP32: 10 * k}) for k in (2, 1))


def shared(
    budgets: Mapping[str, int], *answers: Answer, caff: Caff = CAFF, asked: str | None = None
) -> Mapping[str, str]:
    """What devices of those budgets get from `caff` after those answers; only `asked` if one is named."""
    fleet = tuple(DeviceView(name, budget) for name, budget in budgets.items())
    devices = tuple(device for device in fleet if asked in {None, device.name})
    observation = Observation(devices, (*DEEP, *SHALLOW), answers, fleet)
    return levels_of(caff.decide(observation, caff.initial())[0])


def test_the_model_that_the_fleet_trains_most_of() -> None:
    """The larger model where enough can train much of it, the smaller one where that leaves out too many."""
    assert shared({"a": 350, "b": 300}) == {"a": "deep-3", "b": "deep-2"}
    assert shared({"a": 350, "b": 200, "c": 150}) == {"a": "shallow-2", "b": "shallow-2", "c": "shallow-1"}
    # 3 + 0 of the larger model against 2 + 1 of the smaller: a tie goes to the one that was configured first, and
    # who fits none of its levels sits out; who fits none at all is asked once.
    assert shared({"a": 350, "b": 150}) == {"a": "deep-3"}
    assert shared({"a": 350, "b": 90}) == {"a": "deep-3", "b": "deep-1"}
    assert shared({"a": 350, "b": 90}, Answer("b", "deep-1", Outcome.OVER_BUDGET, 90, 240)) == {"a": "deep-3"}


def test_one_device_is_given_the_model_of_all() -> None:
    """Whoever is asked alone, late in a round, gets a level of the model that the whole fleet has."""
    budgets = {"a": 350, "b": 200, "c": 150}
    for name, level in shared(budgets).items():
        assert shared(budgets, asked=name) == {name: level}


def test_the_limits_of_upload_and_time() -> None:
    """No delta is larger than may be sent; who was too slow gets fewer layers, at that model, from then on."""
    assert shared({"a": 350}, caff=Caff(max_upload_bytes=20)) == {"a": "deep-2"}
    assert shared({"a": 350}, caff=Caff(max_upload_bytes=5)) == {}
    slow = Answer("a", "deep-3", Outcome.DONE, 350, 340, wall_s=61.0)
    assert shared({"a": 350}, slow) == {"a": "deep-3"}
    assert shared({"a": 350}, slow, caff=Caff(max_task_s=61.0)) == {"a": "deep-3"}
    assert shared({"a": 350}, slow, caff=Caff(max_task_s=60.0)) == {"a": "deep-2"}
    fast = dataclasses.replace(slow, wall_s=59.0)
    assert shared({"a": 350}, slow, fast, caff=Caff(max_task_s=60.0)) == {"a": "deep-3"}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(100, 400), min_size=1))
def test_no_other_model_trains_more(budgets: dict[str, int]) -> None:
    """The paper's law: on average over the fleet no model could train more layers, and nobody goes over its budget."""
    levels = {level.name: level for level in (*DEEP, *SHALLOW)}
    found = {name: levels[level] for name, level in shared(budgets).items()}
    assert len({level.model for level in found.values()}) == 1
    fit = [level.trained_layers for name, level in found.items() if level.needs_bytes <= budgets[name]]
    for model in (DEEP, SHALLOW):
        best = (max((m.trained_layers for m in model if m.needs_bytes <= b), default=0) for b in budgets.values())
        assert sum(fit) >= sum(best)


def test_what_took_long_is_known_again_after_a_restart() -> None:
    """Answers of one device and level: the last one counts."""
    answers = [Answer("a", "deep-3", Outcome.DONE, 350, 340, wall_s=s) for s in (5.0, 61.0)]
    assert Known().after(answers).took_s == {("a", "deep-3"): 61.0}
