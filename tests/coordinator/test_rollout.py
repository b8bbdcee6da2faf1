"""A new level is tried by a few devices; it is opened to the rest, or halted, and a restart does not forget."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import (
    CancelTask,
    GiveTask,
    GiveUp,
    Instruction,
    RecordVerdict,
    ResultHeard,
    ResultRefused,
    Tick,
)
from coordinator.history import read_history
from coordinator.ledger import Ledger
from coordinator.narrate import narrate
from coordinator.plan import Past
from coordinator.policy.fitting import Known, fits, fitting, last_resort
from coordinator.policy.types import Choice, DeviceView, Level
from coordinator.rollout import Ended, Rollout, RolloutConfig, Trial, Verdict, wrong
from coordinator.round_states import State
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import FailureReason, RefusalReason, ResultOffer, TaskFailed
from tests.coordinator.samples import MB, make_answer, make_hello, make_report, make_task
from tests.coordinator.scene import DELTA, Scene, only

NEW = RolloutConfig(canary=1, tasks=2, max_failures=0.25, levels=("large",))
ALL = RolloutConfig(canary=2, tasks=2, max_failures=0.0)


def levels(asked: list[Instruction]) -> dict[str, str]:
    """Who was given which level."""
    return {one.device: one.choice.level for one in only(GiveTask, asked)}


def said(asked: list[Instruction]) -> dict[str, bool]:
    """Which levels are halted now, or open."""
    return {one.verdict.level: one.verdict.halted for one in only(RecordVerdict, asked)}


def tried(rollout: RolloutConfig = NEW, **rounds: object) -> tuple[Scene, list[str]]:
    """Three devices that could have the large level, and those of them who try it."""
    scene = Scene(rollout=rollout, **{"count": 9, "devices": 3, **rounds})  # type: ignore[arg-type]
    for name in "abc":
        scene.hello(name)
    return scene, [device for device, level in levels(scene.asked).items() if level == "large"]


def test_one_device_tries_what_is_new() -> None:
    """The others get the next level; after as many tasks as are asked for, all well, the level is open to all."""
    scene, (canary,) = tried()
    for round_ in (1, 2):
        assert said(scene.asked) == {}
        for name in "abc":
            scene.deliver(name)
        assert sum(level == "large" for level in levels(scene.asked[-4:]).values()) <= 1
        asked = scene.aggregate()
        assert levels(asked) == (
            {name: "large" if name == canary else "small" for name in "abc"}
            if round_ == 1
            else dict.fromkeys("abc", "large")
        )
    (verdict,) = only(RecordVerdict, scene.asked)
    assert narrate(verdict) == ("level large is open to all devices: 0 of 2 canary tasks failed", "bold")


@pytest.mark.parametrize(
    "reason",
    [FailureReason.OVER_BUDGET, FailureReason.NON_FINITE, FailureReason.WORKER_DIED, FailureReason.BAD_ARTIFACT],
)
def test_a_level_that_fails_is_halted(reason: FailureReason) -> None:
    """At once, for no second task could help; it is said in red, and given to nobody any more."""
    scene, (canary,) = tried()
    asked = scene.fail(canary, reason)
    (verdict,) = only(RecordVerdict, asked)
    line, style = narrate(verdict) or ("", "")
    assert line.startswith("level large is halted, and given to no device any more: 1 of 1 canary tasks failed")
    assert reason.value in line
    assert style == "bold red"
    for name in set("abc") - {canary}:
        scene.deliver(name)
    if reason is FailureReason.OVER_BUDGET:
        scene.deliver(canary)
    assert set(levels(scene.aggregate()).values()) == {"small"}


def test_a_device_that_falls_back_goes_on_in_the_same_round() -> None:
    """Another canary's task is cancelled with the level, and both of them get the next one."""
    scene, canaries = tried(RolloutConfig(canary=2, tasks=4, max_failures=0.0, levels=("large",)))
    assert len(canaries) == 2
    asked = scene.fail(canaries[0], FailureReason.OVER_BUDGET)
    assert [(one.device, one.reason) for one in only(CancelTask, asked)] == [(canaries[1], "level large is halted")]
    assert levels(asked) == dict.fromkeys(canaries, "small")


def test_a_loss_that_rises_halts() -> None:
    """By more than is allowed; a refused delta does so, too."""
    scene, (canary,) = tried()
    assert said(scene.deliver(canary, loss=3.0 * 1.2)) == {"large": True}
    scene, (canary,) = tried()
    assert said(scene.deliver(canary, loss=3.0 * 1.05)) == {}
    scene, (canary,) = tried()
    task_id = scene.task(canary).task_id
    scene.tell(ResultHeard(canary, ResultOffer(task_id, DELTA, make_report())))
    assert said(scene.tell(ResultRefused(task_id, RefusalReason.NOT_FINITE, "nan"))) == {"large": True}


def test_what_is_the_devices_own_fault_says_nothing() -> None:
    """Bad data, a full disk, a decline or silence are no trial; another device takes the place of one that declined."""
    for reason in (FailureReason.BAD_DATA, FailureReason.NO_SPACE, FailureReason.CANCELLED):
        scene, (canary,) = tried()
        assert said(scene.fail(canary, reason)) == {}
    scene, (canary,) = tried()
    assert levels(scene.decline(canary)) == {canary: "small"}
    scene.tell(Tick(), after_s=100)
    scene.tell(Tick(), after_s=100)
    assert said(scene.asked) == {}


def test_when_every_level_is_halted_the_run_stops() -> None:
    """With one clear line, and all tasks are taken back."""
    scene, _ = tried(ALL)
    while scene.rounds.state is State.OPEN:
        at_work = [entry.device for entry in scene.rounds.entries() if not entry.state.final]
        scene.fail(at_work[0], FailureReason.NON_FINITE)
    assert scene.rounds.state is State.GAVE_UP
    (end,) = only(GiveUp, scene.asked)
    assert end.why.startswith("every level is halted; large: 1 of 1 canary tasks failed (")
    assert "; small: 1 of 1 canary tasks failed (" in end.why
    assert not any(not entry.state.final for entry in scene.rounds.entries())


def test_a_halt_outlives_a_restart(tmp_path: pathlib.Path) -> None:
    """The verdict is in the ledger; where the process was killed before it was, what it follows from is."""
    with Ledger(tmp_path / "ledger.sqlite", "test", "digest") as ledger:
        ledger.begin(blob_of(b"0"))
        ledger.open_round(1, 1, 2, 2)
        for name in "ab":
            ledger.hello(make_hello(name, budget_bytes=300 * MB))
            ledger.give_task(name, Choice("large"), 1, make_task(f"t.{name}"))
        ledger.commit_result("t.b", DELTA, 0.1, make_report(), make_answer("b"))
        ledger.failure(TaskFailed("t.a", FailureReason.NON_FINITE, 0, "nan"), 300 * MB, make_answer("a"))
        past = ledger.past()
        assert isinstance(past, Past)
        ended = {"t.a": FailureReason.NON_FINITE, "t.b": make_report()}
        assert {one.task_id: one.ended for one in past.trials} == ended
        (verdict,) = only(RecordVerdict, Scene(past, rollout=NEW).tell(Tick()))
        assert verdict.verdict.halted
        ledger.verdict(verdict.verdict)
        assert read_history(ledger.path).verdicts == (verdict.verdict,)
        past = ledger.past()
        assert isinstance(past, Past)
    scene = Scene(dataclasses.replace(past, version=1, open=False, trials=()), rollout=NEW)
    for name in "ab":
        assert said(scene.hello(name)) == {}, "it was said"
    assert levels(scene.asked) == {"a": "small", "b": "small"}


def test_a_share_is_of_those_who_are_here() -> None:
    """Half of three devices are two; it is never none."""
    for share, wanted in ((0.5, 2), (0.01, 1)):
        _, canaries = tried(RolloutConfig(canary=share, levels=("large",)))
        assert len(canaries) == wanted


names = st.sampled_from(["a", "b", "c", "d"])
ends = st.sampled_from([make_report(), FailureReason.NON_FINITE, RefusalReason.NOT_FINITE])


@given(
    ends=st.lists(st.tuples(names, ends), max_size=12),
    canary=st.sampled_from([0.3, 1.0, 2.0]),
    max_failures=st.floats(0, 1),
)
def test_a_level_is_never_with_more_than_its_canaries(
    ends: list[tuple[str, Ended]], canary: float, max_failures: float
) -> None:
    """Until it is open; a verdict is said once, stays, and is what the ends so far make of it, in any order."""
    config = RolloutConfig(canary=canary, tasks=3, max_failures=max_failures)
    rollout, online, asked = (
        Rollout.of(config, {"new": MB}, (), ()),
        {"a", "b", "c", "d"},
        dict.fromkeys("abcd", 2 * MB),
    )
    limit = max(2, int(canary)) if canary < 1 else int(canary)
    for k, (_, ended) in enumerate(ends):
        allowed = sorted(device for device, barred in rollout.barred(asked, online, ()).items() if not barred)
        if "new" not in rollout.verdicts:
            assert 0 < len(allowed) <= limit
            rollout = rollout.with_trial(Trial(str(k), allowed[k % len(allowed)], "new", ended))
        for verdict in rollout.due():
            rollout = rollout.with_verdict(verdict)
        assert rollout.due() == ()
    failed = sum(bool(wrong(one.ended, config.max_loss_rise)) for one in rollout.trials.values())
    found = rollout.verdicts.get("new")
    if found is None:
        assert len(rollout.trials) < 3
    else:
        assert found.halted == (failed > max_failures * max(3, len(rollout.trials)))
        allowed = [device for device, barred in rollout.barred(asked, online, ()).items() if not barred]
        assert len(allowed) == (0 if found.halted else 4)
        assert (rollout.end() is not None) == found.halted


def test_a_barred_level_fits_nobody() -> None:
    """Neither as the best, nor as the last resort; so it is for every policy, all of which ask what fits."""
    large, small = Level("large", 200 * MB), Level("small", 100 * MB)
    free, barred = (DeviceView("d", 300 * MB, barred=frozenset(names)) for names in ((), ("large",)))
    assert fitting(free, (large, small), Known()) == (large, small)
    assert fitting(barred, (large, small), Known()) == (small,)
    assert fits([free, barred], (large, small), Known()).tolist() == [[True, True], [False, True]]
    nothing = DeviceView("d", 50 * MB, barred=frozenset({"small"}))
    assert last_resort(nothing, (large, small), Known()) == large
    assert last_resort(nothing, (small,), Known()) is None


def test_what_is_not_tried_is_never_halted() -> None:
    """Neither without a [rollout], nor where the level is not named in it; and what is halted is said once."""
    for config in (None, NEW):
        rollout = Rollout.of(config, {"small": MB}, [Trial("t", "a", "small", FailureReason.NON_FINITE)] * 9, ())
        assert rollout.due() == ()
    known = Verdict("large", halted=True, why="it was")
    assert Rollout.of(NEW, {"large": MB}, [Trial("t", "a", "large", FailureReason.NON_FINITE)], [known]).due() == ()
