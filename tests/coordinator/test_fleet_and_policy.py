"""Who is there, and who gets what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet import Fleet
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Answer, DeviceView, Level, Observation, Outcome
from tests.coordinator.samples import make_hello, make_presence

LEVELS = (Level("large", 300, 50), Level("middle", 200, 20), Level("small", 100, 20))
POLICY = LargestThatFits()


def chosen(budget: int, *answers: Answer, levels: tuple[Level, ...] = LEVELS) -> str | None:
    """What a device of that budget gets after those answers."""
    observation = Observation((DeviceView("d", budget),), levels, answers)
    return POLICY.decide(observation, POLICY.initial())[0].levels.get("d")


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
        if "d" not in decision.levels:
            break
        offered.append(decision.levels["d"])
        answer = (over(offered[-1], budget, 0),)
    assert len(offered) == len(set(offered)) <= len(LEVELS)
    assert "d" not in POLICY.decide(Observation((DeviceView("d", budget),), LEVELS, answer), state)[0].levels


@given(st.integers(50, 400), answers)
def test_repeating_an_answer_changes_nothing(budget: int, past: list[Answer]) -> None:
    """Answers are facts: shown twice, as after a restart, they mean the same."""
    assert chosen(budget, *past) == chosen(budget, *past, *past)
