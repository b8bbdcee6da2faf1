"""The course of the rounds, driven event by event, without a clock."""

from __future__ import annotations

import pytest

from coordinator.desk import BUSY_S, SILENCE_S
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    CancelTask,
    DeclineHeard,
    DeviceRevoked,
    FailureHeard,
    FetchDelta,
    Finish,
    GiveTask,
    GiveUp,
    NoAdapter,
    OfferAgain,
    OpenRound,
    PresenceHeard,
    ProgressHeard,
    Reconnected,
    RecordDecision,
    RecordDecline,
    RepeatRound,
    ResultCommitted,
    ResultHeard,
    ResultRefused,
    SendReceipt,
    StopAsked,
    Tick,
)
from coordinator.plan import Past
from coordinator.round_states import TRANSITIONS, State, Trigger
from coordinator.rounds import REPEAT_S
from coordinator.tasks import GRACE_S, TASKS
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import (
    DeclineReason,
    FailureReason,
    Receipt,
    RefusalReason,
    ResultOffer,
    TaskDeclined,
    TaskFailed,
    TaskProgress,
)
from tests.coordinator.samples import make_answer, make_presence, make_report
from tests.coordinator.scene import DELTA, Scene, only, opened


def test_a_revoked_device_is_waited_for_no_more() -> None:
    """Its task is cancelled, the round closes with the others, and the next one opens without it."""
    scene = opened(devices=2, min_devices=1, quorum=1)
    scene.deliver("a")
    asked = scene.tell(DeviceRevoked("b"))
    assert [cancel.device for cancel in only(CancelTask, asked)] == ["b"]
    (aggregation,) = only(AggregateRound, asked)
    assert aggregation.task_ids == (scene.task("a").task_id,)
    asked = scene.tell(AdapterReady(1, blob_of(b"adapter 1")))
    assert [give.device for give in only(GiveTask, asked)] == ["a"]
    assert scene.tell(DeviceRevoked("never seen")) == []


def test_a_round_opens_when_the_expected_devices_are_there() -> None:
    """The first device waits for the second, then both get a task, the announcement first."""
    scene = Scene()
    assert scene.hello("a") == []
    asked = scene.hello("b")
    assert [type(i) for i in asked] == [RecordDecision, OpenRound, GiveTask, GiveTask]
    assert asked[1] == OpenRound(1, 1, 2, 2)
    assert [i.device for i in only(GiveTask, asked)] == ["a", "b"]
    assert scene.task("a").deadline_s == 100
    assert scene.task("a").seed != scene.task("b").seed


def drawn(seed: int = 0, needed: frozenset[str] = frozenset()) -> list[list[str]]:
    """Who took part in each of eight rounds of three out of ten devices."""
    names = [f"d{k}" for k in range(10)]
    scene = Scene(count=8, devices=10, participants=3, seed=seed, needed=needed)
    for name in names:
        scene.hello(name)
    rounds = []
    for round_ in range(1, 9):
        rounds.append([i.device for i in only(GiveTask, scene.asked) if i.task.round == round_])
        for name in rounds[-1]:
            scene.deliver(name)
        scene.tell(AdapterReady(round_, blob_of(b"adapter"), {}))
    assert scene.rounds.state is State.DONE
    return rounds


def test_participants_are_drawn_anew_for_each_round() -> None:
    """As many as were asked for, not always the same, and the same ones in another run with the same seed."""
    rounds = drawn()
    assert {len(set(devices)) for devices in rounds} == {3}
    assert len({tuple(devices) for devices in rounds}) > 4
    assert len({device for devices in rounds for device in devices}) > 7
    assert drawn() == rounds != drawn(seed=1)


def test_whoever_is_needed_is_not_left_to_the_lot() -> None:
    """It takes part in every round, in one of its places; the others are drawn."""
    rounds = drawn(needed=frozenset({"d7"}))
    assert all("d7" in devices and len(devices) == 3 for devices in rounds)
    assert len({tuple(devices) for devices in rounds}) > 4


def test_whoever_speaks_up_later_joins_while_there_is_room() -> None:
    """With two participants at most: the second joins late, the third does not, and who declined may try again."""
    scene = Scene(devices=3, participants=2)
    scene.hello("a")
    scene.tell(Tick(), after_s=11)
    assert scene.rounds.state is State.OPEN
    assert [i.device for i in only(GiveTask, scene.hello("b"))] == ["b"]
    assert not only(GiveTask, scene.hello("c"))
    assert [i.choice.level for i in only(GiveTask, scene.decline("b"))] == ["small"]
    assert not only(GiveTask, scene.hello("c"))


def test_a_level_of_a_lower_rank_has_an_adapter_of_its_own() -> None:
    """Its devices get what stands in the adapter's place there; after a round, what stands in the next one's."""
    before, after = ({"small": blob_of(b"small %d" % k)} for k in range(2))
    scene = Scene(Past(0, blob_of(b"adapter 0"), narrowed=before))
    scene.hello("a")
    scene.hello("b", budget_mb=150)
    assert [scene.task(device).adapter for device in "ab"] == [blob_of(b"adapter 0"), before["small"]]
    scene.deliver("a")
    (asked,) = only(AggregateRound, scene.deliver("b"))
    assert asked.adapter == blob_of(b"adapter 0")
    scene.tell(AdapterReady(1, blob_of(b"adapter 1"), after))
    assert [scene.task(device).adapter for device in "ab"] == [blob_of(b"adapter 1"), after["small"]]


def test_a_round_opens_with_fewer_after_the_wait() -> None:
    """Patience ends: after `wait_s` the minimum is enough, and without it nothing opens."""
    scene = Scene(min_devices=1)
    assert scene.tell(Tick(), after_s=11) == []
    assert only(OpenRound, scene.hello("a"))


def test_no_round_opens_without_a_needed_device() -> None:
    """However many others are there, and however long; it takes part as they do, and may decline as they may."""
    scene = Scene(needed=frozenset({"server"}), min_devices=1)
    assert scene.hello("a") == scene.hello("b") == []
    assert scene.tell(Tick(), after_s=1000) == []
    assert [i.device for i in only(GiveTask, scene.hello("server"))] == ["a", "b", "server"]
    scene.decline("server", DeclineReason.NO_SPACE)
    scene.deliver("a")
    assert only(AggregateRound, scene.deliver("b"))


def test_a_whole_run() -> None:
    """Two rounds of two devices: each is aggregated once, from the adapter before it, and the run ends."""
    scene = opened()
    first = scene.rounds.adapter
    scene.deliver("a")
    aggregate = only(AggregateRound, scene.deliver("b"))[0]
    assert (aggregate.round, aggregate.adapter) == (1, first)
    assert set(aggregate.task_ids) == {scene.task("a").task_id, scene.task("b").task_id}
    assert only(OpenRound, scene.tell(AdapterReady(1, blob_of(b"1")))) == [OpenRound(2, 1, 2, 2)]
    assert scene.task("a").adapter == blob_of(b"1")
    assert scene.task("a").round == 2
    scene.deliver("a")
    scene.deliver("b")
    assert scene.tell(AdapterReady(2, blob_of(b"2"))) == [Finish()]
    assert scene.rounds.state is State.DONE


def test_a_late_comer_takes_part() -> None:
    """A device that speaks up in an open round gets a task with the time that is left."""
    scene = opened()
    scene.tell(Tick(), after_s=40)
    assert only(GiveTask, scene.hello("c"))[0].task.deadline_s == 60


def test_hello_again_repeats_the_offer() -> None:
    """A device that forgot, or a new process of it, is offered the same task; one that has delivered, nothing."""
    scene = opened()
    again = only(OfferAgain, scene.hello("a", session="s2"))
    assert [i.task.task_id for i in again] == [scene.task("a").task_id]
    scene.deliver("a")
    assert scene.hello("a") == []


def test_a_reconnect_and_silence_repeat_offers() -> None:
    """Offers that a broker may have lost are made again, to devices that are there."""
    scene = opened()
    assert len(only(OfferAgain, scene.tell(Reconnected()))) == 2
    scene.tell(PresenceHeard(make_presence("b", online=False)))
    scene.tell(ProgressHeard("a", TaskProgress(scene.task("a").task_id, 1, 3, 2.0)), after_s=SILENCE_S - 1)
    assert scene.tell(Tick(), after_s=1) == []
    scene.tell(PresenceHeard(make_presence("b", online=True)))
    assert [i.device for i in only(OfferAgain, scene.tell(Tick()))] == ["b"]


def test_busy_with_something_else_is_told_to_stop() -> None:
    """A device at work on a task that is not open is told so; one whose result is in gets its receipt."""
    scene = opened()
    assert only(CancelTask, scene.hello("c", task_id="stale"))[0].task_id == "stale"
    scene.deliver("a")
    receipts = only(SendReceipt, scene.hello("a", task_id=scene.task("a").task_id))
    assert [i.receipt.accepted for i in receipts] == [True]


def test_a_busy_device_is_asked_again_soon() -> None:
    """Busy is not an answer: the offer stands and is made again."""
    scene = opened()
    assert scene.decline("a", DeclineReason.BUSY) == []
    assert [i.device for i in only(OfferAgain, scene.tell(Tick(), after_s=BUSY_S))] == ["a"]


def test_over_budget_gets_the_next_level() -> None:
    """A decline for lack of memory is recorded, and a smaller level is offered in the same round, then none."""
    scene = opened()
    asked = scene.decline("a")
    assert only(RecordDecline, asked)[0].level == "large"
    assert only(GiveTask, asked)[0].choice.level == "small"
    assert not only(GiveTask, scene.decline("a"))
    assert only(AggregateRound, scene.deliver("b"))


def test_failing_over_budget_gets_the_next_level_and_other_failures_sit_out() -> None:
    """A worker killed for its memory is followed by a smaller task; one that diverged rests until the next round."""
    scene = opened()
    assert only(GiveTask, scene.fail("a", FailureReason.OVER_BUDGET))[0].choice.level == "small"
    assert not only(GiveTask, scene.fail("b", FailureReason.NON_FINITE))
    assert not only(GiveTask, scene.hello("b"))
    scene.deliver("a")
    asked = scene.tell(AdapterReady(1, DELTA))
    assert {i.device: i.choice.level for i in only(GiveTask, asked)} == {"a": "small", "b": "large"}


def test_a_device_that_cannot_use_it_is_not_asked_again() -> None:
    """A decline that no level mends lasts as long as the device's session."""
    scene = opened()
    scene.decline("a", DeclineReason.INCOMPATIBLE)
    assert not only(GiveTask, scene.hello("a"))
    scene.deliver("b")
    assert [i.device for i in only(GiveTask, scene.tell(AdapterReady(1, DELTA)))] == ["b"]
    assert only(GiveTask, scene.hello("a", session="s2"))


def test_nobody_joins_after_the_deadline() -> None:
    """A Hello, or an answer to be followed by another task, may be the first that is heard after the deadline."""
    for hello in (True, False):
        scene = opened()
        scene.now_s += 100.1
        assert only(GiveTask, scene.hello("c") if hello else scene.decline("a")) == []
        assert scene.rounds.state is State.WAITING


def test_a_device_that_never_stops_answering_gets_no_end_of_tasks() -> None:
    """A device may claim new sessions and senseless sizes for ever: what it costs the ledger is bounded."""
    scene = opened()
    for k in range(2 * TASKS):
        message = TaskDeclined(scene.task("a").task_id, DeclineReason.OVER_BUDGET, 0, 0, "")
        scene.tell(DeclineHeard("a", message))
        scene.hello("a", session=f"s{k}")
    assert len([i for i in only(GiveTask, scene.asked) if i.device == "a"]) == TASKS
    scene.deliver("b")
    assert only(AggregateRound, scene.asked)


def test_the_deadline_closes() -> None:
    """At the deadline what was not offered is cancelled, what is being fetched may still arrive; the quorum counts."""
    scene = opened()
    scene.tell(ResultHeard("a", ResultOffer(scene.task("a").task_id, DELTA, make_report())))
    cancelled = only(CancelTask, scene.tell(Tick(), after_s=100))
    assert [i.device for i in cancelled] == ["b"]
    assert scene.rounds.state is State.CLOSING
    asked = scene.tell(ResultCommitted(scene.task("a").task_id, make_answer()), after_s=1)
    assert only(AggregateRound, asked)


def test_grace_ends() -> None:
    """A delta that never arrives does not hold the round."""
    scene = opened(quorum=1)
    scene.deliver("b")
    scene.tell(ResultHeard("a", ResultOffer(scene.task("a").task_id, DELTA, make_report())))
    scene.tell(Tick(), after_s=100)
    asked = scene.tell(Tick(), after_s=GRACE_S)
    assert only(AggregateRound, asked)[0].task_ids == (scene.task("b").task_id,)


def test_late_results_are_refused_as_closed() -> None:
    """A result for a cancelled task gets its receipt: not accepted, closed."""
    scene = opened()
    late = scene.task("b")
    scene.deliver("a")
    scene.tell(Tick(), after_s=100)
    receipt = only(SendReceipt, scene.tell(ResultHeard("b", ResultOffer(late.task_id, DELTA, make_report()))))[
        0
    ].receipt
    assert (receipt.accepted, receipt.reason) == (False, RefusalReason.CLOSED)


def test_without_quorum_the_round_is_repeated() -> None:
    """Too few results: said, waited for a moment, and begun again with new tasks; the old results do not count."""
    scene = opened(quorum=2)
    scene.deliver("a")
    old = scene.task("a").task_id
    asked = scene.tell(Tick(), after_s=100)
    assert only(RepeatRound, asked) == [RepeatRound(1, 1, "1 results, the quorum is 2")]
    assert scene.tell(Tick(), after_s=REPEAT_S - 1) == []
    assert only(OpenRound, scene.tell(Tick(), after_s=1)) == [OpenRound(1, 2, 2, 2)]
    scene.deliver("a")
    assert old not in only(AggregateRound, scene.deliver("b"))[0].task_ids


def test_attempts_end() -> None:
    """A round that comes to nothing again and again is given up, and why is said."""
    scene = opened(quorum=2, attempts=2)
    scene.tell(Tick(), after_s=100)
    scene.tell(Tick(), after_s=REPEAT_S)
    asked = scene.tell(Tick(), after_s=100)
    assert "0 results, the quorum is 2" in only(GiveUp, asked)[0].why
    assert scene.rounds.state is State.GAVE_UP


def test_results_without_a_middle_are_not_used() -> None:
    """Where the estimator does not hold, the round is tried again, and given up after the last attempt."""
    scene = opened(attempts=2)
    for attempt in (1, 2):
        scene.deliver("a")
        (asked,) = only(AggregateRound, scene.deliver("b"))
        assert asked.attempt == attempt
        words = scene.tell(NoAdapter(1, "4 deltas of x, median with 2 liars needs 5"))
        assert only(RepeatRound, words) == [RepeatRound(1, attempt, "4 deltas of x, median with 2 liars needs 5")]
        scene.tell(Tick(), after_s=REPEAT_S)
    assert scene.rounds.state is State.GAVE_UP
    assert "needs 5" in only(GiveUp, words)[0].why
    assert scene.tell(NoAdapter(1, "again")) == []


def test_attempts_without_end() -> None:
    """With `attempts = 0` a round is tried until there are enough results."""
    scene = opened(quorum=2, attempts=0)
    for _ in range(20):
        scene.deliver("a")
        scene.fail("b", FailureReason.WORKER_DIED)
        assert scene.rounds.state is State.WAITING
        scene.tell(Tick(), after_s=REPEAT_S)
    assert scene.rounds.attempt == 21
    scene.deliver("a")
    assert only(AggregateRound, scene.deliver("b"))


def test_nobody_fits() -> None:
    """A fleet too small for every level is given up in the end, naming what the smallest level needs."""
    scene = Scene(devices=1, attempts=2)
    scene.hello("tiny", budget_mb=64)
    scene.decline("tiny")
    asked = scene.tell(Tick(), after_s=REPEAT_S)
    assert "the smallest level needs 100 MB" in only(GiveUp, asked)[0].why


def test_a_refused_delta_is_answered_the_same_each_time() -> None:
    """The refusal is the last word, and the device sits the round out."""
    scene = opened()
    offer = ResultHeard("a", ResultOffer(scene.task("a").task_id, DELTA, make_report()))
    scene.tell(offer)
    word = scene.tell(ResultRefused(scene.task("a").task_id, RefusalReason.NOT_FINITE, "nan"))
    assert word == [
        SendReceipt(
            "a", Receipt(scene.task("a").task_id, accepted=False, reason=RefusalReason.NOT_FINITE, detail="nan")
        )
    ]
    assert scene.tell(offer) == word
    assert not only(GiveTask, scene.hello("a"))


def test_duplicates_do_nothing() -> None:
    """Every message a second time changes nothing but its own answer."""
    scene = opened()
    task_id = scene.task("a").task_id
    offer = ResultHeard("a", ResultOffer(task_id, DELTA, make_report()))
    assert only(FetchDelta, scene.tell(offer)) == only(FetchDelta, scene.tell(offer))
    scene.tell(ResultCommitted(task_id, make_answer()))
    assert only(SendReceipt, scene.tell(offer))[0].receipt.accepted
    late = TaskDeclined(task_id, DeclineReason.OVER_BUDGET, 1, 1, "")
    assert scene.tell(DeclineHeard("a", late)) == []
    scene.decline("b")
    first = next(i.task.task_id for i in scene.asked if isinstance(i, GiveTask) and i.device == "b")
    assert scene.tell(DeclineHeard("b", TaskDeclined(first, DeclineReason.OVER_BUDGET, 1, 1, ""))) == []


def test_a_device_cannot_speak_for_another() -> None:
    """A result, a decline or a failure of another device's task is of an unknown task."""
    scene = opened()
    theirs = scene.task("a").task_id
    receipt = only(SendReceipt, scene.tell(ResultHeard("b", ResultOffer(theirs, DELTA, make_report()))))[0].receipt
    assert receipt.reason is RefusalReason.UNKNOWN_TASK
    assert scene.tell(DeclineHeard("b", TaskDeclined(theirs, DeclineReason.OVER_BUDGET, 1, 1, ""))) == []
    assert scene.tell(FailureHeard("b", TaskFailed(theirs, FailureReason.OVER_BUDGET, 1, ""))) == []
    assert scene.tell(FailureHeard("stranger", TaskFailed(theirs, FailureReason.OVER_BUDGET, 1, ""))) == []


def test_stopping_cancels_and_is_final() -> None:
    """Ctrl-C tells the devices, and nothing starts afterwards; results that are in keep their receipts."""
    scene = opened()
    scene.deliver("a")
    assert [i.device for i in only(CancelTask, scene.tell(StopAsked()))] == ["b"]
    assert scene.rounds.state is State.STOPPED
    assert scene.tell(Tick(), after_s=1000) == []
    again = scene.tell(ResultHeard("a", ResultOffer(scene.task("a").task_id, DELTA, make_report())))
    assert only(SendReceipt, again)[0].receipt.accepted


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached_and_left(state: State) -> None:
    """The table has no state that nothing leads to, and none without a way out but the three ends."""
    leads = {end for ways in TRANSITIONS.values() for end in ways.values()}
    assert state in leads | {State.WAITING}
    assert bool(TRANSITIONS[state]) == (state not in {State.DONE, State.GAVE_UP, State.STOPPED})


def test_every_trigger_is_used() -> None:
    """No trigger is in the vocabulary alone."""
    assert {trigger for ways in TRANSITIONS.values() for trigger in ways} == set(Trigger)
