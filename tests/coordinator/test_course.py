"""What counts in which round: more devices than are needed, results that come late, and a buffer that fills."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.course import Late, Mode, RoundsConfig, Seen, course_of
from coordinator.events import (
    AggregateRound,
    CancelTask,
    Finish,
    GiveTask,
    Instruction,
    OfferAgain,
    OpenRound,
    Reconnected,
    RepeatRound,
    ResultHeard,
    SendReceipt,
    StopAsked,
    TaskState,
    Tick,
)
from coordinator.plan import Past
from coordinator.policy.types import Choice, Outcome
from coordinator.round_states import State
from coordinator.rounds import REPEAT_S
from coordinator.task_book import Entry
from coordinator.tasks import GRACE_S
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import FailureReason, RefusalReason, ResultOffer, Task
from tests.coordinator.samples import make_report
from tests.coordinator.scene import DELTA, Scene, only, opened

LATE: dict[str, Any] = {"late": Late.DISCOUNT, "max_staleness": 2}
FILLS: dict[str, Any] = {"mode": Mode.BUFFERED, "buffer": 2, "count": 3, "max_staleness": 2}


def offer(scene: Scene, device: str, task: Task) -> list[Instruction]:
    """The device offers what it made of the task."""
    return scene.tell(ResultHeard(device, ResultOffer(task.task_id, DELTA, make_report())))


def cancelled(asked: list[Instruction]) -> dict[str, bool]:
    """Whose tasks were taken back, and whether a policy hears that they are lost."""
    return {one.device: one.answer is not None for one in only(CancelTask, asked)}


def gave(asked: list[Instruction]) -> list[str]:
    """Who was given a task."""
    return [one.device for one in only(GiveTask, asked)]


# ---- more than are needed


def test_more_are_drawn_than_are_needed() -> None:
    """Two participants and one extra: three of four are drawn, two results close the round, the third hears of it."""
    scene = Scene(devices=4, participants=2, extra=1)
    for name in "abcd":
        scene.hello(name)
    (opening,) = only(OpenRound, scene.asked)
    assert (opening.present, opening.drawn) == (4, 3)
    one, two, slow = gave(scene.asked)
    scene.deliver(one)
    late = scene.task(slow)
    asked = scene.deliver(two)
    assert cancelled(asked) == {slow: False}, "it was not too slow for its level: the others were faster"
    assert [type(one) for one in asked[-2:]] == [CancelTask, AggregateRound]
    assert scene.aggregated() == [(1, {scene.task(one).task_id, scene.task(two).task_id})]
    (word,) = only(SendReceipt, offer(scene, slow, late))
    assert (word.receipt.accepted, word.receipt.reason) == (False, RefusalReason.CLOSED)


def test_a_result_on_its_way_is_not_waited_for() -> None:
    """What is being fetched when there are enough is cancelled, too."""
    scene = Scene(devices=3, participants=2, extra=1)
    for name in "abc":
        scene.hello(name)
    offer(scene, "c", scene.task("c"))
    scene.deliver("a")
    assert "c" in cancelled(scene.deliver("b"))
    assert scene.rounds.state is State.AGGREGATING


def test_an_extra_device_stands_in_for_one_that_fails() -> None:
    """One of three fails: the other two are enough, and nobody waits."""
    scene = Scene(devices=3, participants=2, extra=1)
    for name in "abc":
        scene.hello(name)
    scene.fail("a", FailureReason.WORKER_DIED)
    scene.deliver("b")
    assert only(AggregateRound, scene.deliver("c"))


def test_fewer_than_are_wanted_still_make_a_round() -> None:
    """Where not even the participants are there, all that answer are a round, as the quorum allows."""
    scene = opened(participants=3, extra=2)
    scene.deliver("a")
    assert only(AggregateRound, scene.deliver("b"))


# ---- results that come late


def straggling() -> tuple[Scene, Task]:
    """Round 1 closed at its deadline with a's result alone; b is still at work on its task."""
    scene = opened(count=4, **LATE)
    scene.deliver("a")
    late = scene.task("b")
    asked = scene.tell(Tick(), after_s=100)
    assert only(AggregateRound, asked)
    assert not only(CancelTask, asked), "its result can still count"
    return scene, late


def test_a_late_result_counts_in_the_round_that_is_open() -> None:
    """Once, beside those in time; its receipt says how late it is and what it is worth."""
    scene, late = straggling()
    assert late.deadline_s == 300, "the device may go on for as long as it would count"
    assert gave(scene.aggregate()) == ["a"], "b is at its first task"
    asked = scene.deliver("b", late)
    (word,) = only(SendReceipt, asked)
    assert word.receipt.accepted
    assert word.receipt.detail == "1 versions late: it counts in version 2, 71% of its change"
    assert gave(asked) == ["b"], "now it takes part in round 2"
    scene.deliver("a")
    scene.deliver("b")
    assert scene.aggregated()[1] == (2, {late.task_id, scene.task("a").task_id, scene.task("b").task_id})
    assert only(SendReceipt, offer(scene, "b", late))[0].receipt == word.receipt


def test_a_result_that_comes_while_a_round_is_aggregated_counts_in_the_next() -> None:
    """It is fetched and accepted at once, and is in the next version alone."""
    scene, late = straggling()
    (word,) = only(SendReceipt, scene.deliver("b", late))
    assert "it counts in version 2" in word.receipt.detail
    assert late.task_id not in scene.aggregated()[0][1]
    assert sorted(gave(scene.aggregate())) == ["a", "b"]
    scene.deliver("a")
    scene.deliver("b")
    assert late.task_id in scene.aggregated()[1][1]


def test_what_is_too_late_is_taken_back() -> None:
    """A task whose result would be three versions late where two are allowed is lost, and its result is refused."""
    scene, late = straggling()
    for round_ in (2, 3):
        scene.aggregate()
        asked = scene.deliver("a")
        assert only(AggregateRound, asked)
        assert cancelled(asked) == ({"b": True} if round_ == 3 else {})
    assert not only(SendReceipt, offer(scene, "b", late))[0].receipt.accepted


def test_a_task_ends_with_its_time() -> None:
    """However few rounds pass meanwhile: after as many deadlines as it may be rounds late, it is lost."""
    scene, late = straggling()
    scene.aggregate()
    assert not cancelled(scene.tell(Tick(), after_s=99))
    asked = scene.tell(Tick(), after_s=101)
    assert cancelled(asked)["b"]
    assert not only(SendReceipt, offer(scene, "b", late))[0].receipt.accepted


def test_results_of_an_attempt_without_quorum_are_kept() -> None:
    """They count in the next attempt, their devices are not asked for the same again, and who was slow goes on."""
    scene = opened(quorum=2, **LATE)
    first, late = scene.task("a"), scene.task("b")
    scene.deliver("a")
    asked = scene.tell(Tick(), after_s=100)
    assert only(RepeatRound, asked)[0].why == "1 results, the quorum is 2; they are kept"
    assert not gave(scene.tell(Tick(), after_s=REPEAT_S)), "a has delivered, b is at work"
    assert gave(scene.hello("c")) == ["c"]
    scene.deliver("b", late)
    scene.deliver("c")
    ((version, tasks),) = scene.aggregated()
    assert (version, {first.task_id, late.task_id} <= tasks, len(tasks)) == (1, True, 3)


def test_results_that_come_between_attempts_are_enough() -> None:
    """When all have delivered for an attempt that was closed without them, the next one is closed with them."""
    scene = opened(quorum=2, **LATE)
    tasks = {scene.task(name).task_id for name in "ab"}
    assert only(RepeatRound, scene.tell(Tick(), after_s=100))
    for name in "ab":
        scene.deliver(name)
    asked = scene.tell(Tick(), after_s=REPEAT_S)
    assert [type(one) for one in asked] == [OpenRound, AggregateRound]
    assert scene.aggregated() == [(1, tasks)]


def test_late_results_are_waited_for_where_there_are_too_few() -> None:
    """A round whose own devices have answered waits for those of rounds before, until its quorum."""
    scene = opened(count=3, quorum=2, min_devices=1, **LATE)
    scene.hello("c")
    for name in "ac":
        scene.deliver(name)
    late = scene.task("b")
    scene.tell(Tick(), after_s=100)
    scene.aggregate()
    scene.deliver("a")
    scene.fail("c", FailureReason.WORKER_DIED)
    assert scene.rounds.state is State.OPEN
    asked = scene.deliver("b", late)
    assert gave(asked) == ["b"], "it takes part, now that it is free"
    scene.deliver("b")
    assert scene.aggregated()[1][1] >= {late.task_id}


def test_with_the_last_round_all_tasks_end() -> None:
    """Nothing is accepted that could be in no version."""
    scene = opened(count=1, **LATE)
    late = scene.task("b")
    scene.deliver("a")
    assert cancelled(scene.tell(Tick(), after_s=100)) == {"b": False}
    assert not only(SendReceipt, offer(scene, "b", late))[0].receipt.accepted
    assert only(Finish, scene.aggregate())


def test_extra_devices_go_on_where_late_results_count() -> None:
    """They are not cancelled when there are enough: what they have trained counts in the next round."""
    scene = Scene(devices=3, participants=2, extra=1, **LATE)
    for name in "abc":
        scene.hello(name)
    late = scene.task("c")
    scene.deliver("a")
    assert not cancelled(scene.deliver("b"))
    assert sorted(gave(scene.aggregate())) == ["a", "b"]
    assert "version 2" in only(SendReceipt, scene.deliver("c", late))[0].receipt.detail
    scene.deliver("a")
    assert scene.aggregated()[1] == (2, {late.task_id, scene.task("a").task_id}), "two results are enough again"


# ---- a buffer


def filling(**changes: Any) -> Scene:
    """Two devices at work, of whose results every two make a version."""
    return opened(**{**FILLS, **changes})


def test_whoever_delivers_gets_another_task_at_once() -> None:
    """From the same adapter, with other rows; not when the buffer is full, for a newer adapter is about to come."""
    scene = filling()
    first = scene.task("a")
    assert gave(scene.deliver("a")) == ["a"]
    second = scene.task("a")
    assert (second.adapter, second.round) == (first.adapter, 1)
    assert second.seed != first.seed
    asked = scene.deliver("a")
    assert gave(asked) == []
    assert scene.aggregated() == [(1, {first.task_id, second.task_id})]
    assert not cancelled(asked), "b goes on"
    assert [one.task.adapter for one in only(GiveTask, scene.aggregate())] == [blob_of(b"adapter 1")]


def test_a_slow_device_counts_when_it_comes() -> None:
    """Two versions late, in the version after that, with its weight; in a run of three versions none is lost."""
    scene = filling()
    late = scene.task("b")
    for _ in range(2):
        for _ in range(2):
            scene.deliver("a")
        scene.aggregate()
    (word,) = only(SendReceipt, scene.deliver("b", late))
    assert word.receipt.detail == "2 versions late: it counts in version 3, 58% of its change"
    asked = scene.deliver("a")
    assert scene.aggregated()[2][1] >= {late.task_id}
    assert cancelled(asked) == {"b": False}, "its new task could be in no version"
    assert only(Finish, scene.aggregate())


def test_a_silent_device_costs_itself_alone() -> None:
    """Its task is lost at its own deadline; the buffer fills without it, and in the next version it is asked again."""
    scene = filling(count=9)
    scene.tell(Tick(), after_s=60)
    scene.deliver("a")
    assert cancelled(scene.tell(Tick(), after_s=40)) == {"b": True}
    (lost,) = [one.answer for one in only(CancelTask, scene.asked) if one.answer]
    assert lost.outcome is Outcome.LOST
    assert gave(scene.hello("b")) == [], "it sits this version out"
    scene.deliver("a")
    assert sorted(gave(scene.aggregate())) == ["a", "b"]


def test_a_result_on_its_way_gets_grace() -> None:
    """What is offered before its deadline may arrive a little after it."""
    scene = filling()
    offer(scene, "b", scene.task("b"))
    assert not cancelled(scene.tell(Tick(), after_s=100 + GRACE_S - 1)).get("b")
    assert cancelled(scene.tell(Tick(), after_s=1))["b"]


def test_a_buffer_that_nobody_fills_is_begun_again() -> None:
    """With all devices sitting out, the version is tried again, and what has come counts in it."""
    scene = filling()
    first = scene.task("a")
    scene.deliver("a")
    scene.fail("a", FailureReason.WORKER_DIED)
    asked = scene.fail("b", FailureReason.WORKER_DIED)
    assert only(RepeatRound, asked)[0].why == "1 results, the quorum is 2; they are kept"
    assert sorted(gave(scene.tell(Tick(), after_s=REPEAT_S))) == ["a", "b"]
    assert scene.task("a").seed != first.seed, "it has given a delta from this adapter"
    scene.deliver("b")
    assert first.task_id in scene.aggregated()[0][1]


def test_a_device_that_comes_late_joins_at_once() -> None:
    """No round has to end for it."""
    scene = filling()
    assert gave(scene.hello("c")) == ["c"]


def test_a_restart_goes_on_with_what_is_committed_and_at_work() -> None:
    """Of a restarted coordinator the buffer has what it had; tasks of versions before are offered again; a device that
    has none is waited for.
    """
    before = filling(count=5)
    late = before.task("b")
    for _ in range(2):
        before.deliver("a")
    before.aggregate()
    counting = before.task("a")
    tasks = [
        (late, "b", TaskState.OFFERED, 0),
        (counting, "a", TaskState.COMMITTED, 2),
    ]
    entries = tuple(
        Entry(device, Choice("large"), 1, task, state, counts_in=version) for task, device, state, version in tasks
    )
    past = Past(1, blob_of(b"adapter 1"), open=True, entries=entries, fleet=before.rounds.fleet)
    scene = Scene(past, **{**FILLS, "count": 5})
    assert scene.tell(Tick()) == []
    assert [one.task.task_id for one in only(OfferAgain, scene.hello("b"))] == [late.task_id]
    assert gave(scene.hello("a")) == ["a"]
    assert len(only(OfferAgain, scene.tell(Reconnected()))) == 2
    scene.deliver("b", late)
    assert scene.aggregated() == [(2, {late.task_id, counting.task_id})]


def test_a_restart_with_nobody_at_work_waits() -> None:
    """The devices that were there may come back; without them the version is tried again, and given up in the end."""
    fleet = filling().rounds.fleet
    scene = Scene(Past(1, blob_of(b"adapter 1"), open=True, fleet=fleet), **FILLS)
    assert scene.tell(Tick()) == []
    assert scene.rounds.state is State.OPEN
    assert only(RepeatRound, scene.tell(Tick(), after_s=11))
    assert gave(scene.hello("a")) == []
    assert gave(scene.tell(Tick(), after_s=REPEAT_S)) == ["a"]


def test_stopping_ends_every_task() -> None:
    """Those of versions before, too."""
    scene = filling()
    for _ in range(2):
        scene.deliver("a")
    scene.aggregate()
    assert sorted(cancelled(scene.tell(StopAsked()))) == ["a", "b"]
    assert scene.rounds.state is State.STOPPED


# ---- the rules themselves


@given(late=st.integers(0, 1000), exponent=st.floats(0, 10))
def test_the_later_the_less(late: int, exponent: float) -> None:
    """A result in time counts whole; one that is later never counts more, and with exponent 0 all count whole."""
    config = RoundsConfig(count=1, devices=1, staleness_exponent=exponent)
    assert config.weight(0) == 1
    assert 0 <= config.weight(late + 1) <= config.weight(late) <= 1
    assert config.weight(3) == pytest.approx(4.0**-exponent)
    assert RoundsConfig(count=1, devices=1, staleness_exponent=0).weight(late) == 1


@given(
    seen=st.builds(
        Seen, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), awaited=st.booleans(), overdue=st.booleans()
    ),
    config=st.sampled_from(
        [
            RoundsConfig(count=1, devices=3, quorum=2),
            RoundsConfig(count=1, devices=3, participants=2, extra=1, quorum=2),
            RoundsConfig(count=1, devices=3, quorum=2, late=Late.DISCOUNT),
            RoundsConfig(count=1, devices=3, mode=Mode.BUFFERED, buffer=4),
        ]
    ),
)
def test_no_round_waits_for_nobody(seen: Seen, config: RoundsConfig) -> None:
    """Without a task or a device to come back a round closes; with enough results it does whoever is at work."""
    course = course_of(config)
    if not (seen.unfinished or seen.late or seen.awaited) or seen.results >= course.enough:
        assert course.closes(seen) is not None
    elif math.isinf(course.deadline_at_s(0.0)):
        assert course.closes(seen) is None
    assert course.due_s(course.deadline_at_s(0.0), 0.0) >= config.deadline_s
