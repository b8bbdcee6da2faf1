"""All of what a policy chooses is in what a device is given, and all that comes of it is what a policy sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from coordinator.answers import STARTS_S, finished
from coordinator.config import Rule, TrainingConfig, TransferConfig
from coordinator.course import RoundsConfig
from coordinator.events import (
    AdapterReady,
    FetchDelta,
    GiveTask,
    Instruction,
    LossMeasured,
    RecordDecision,
    ResultHeard,
    SetRates,
    StopAsked,
    TaskState,
    Tick,
)
from coordinator.plan import Past, Plan
from coordinator.policy.fitting import Known
from coordinator.policy.types import Answer, Choice, Decision, Observation, Outcome
from coordinator.rounds import Rounds
from coordinator.task_book import Entry, Place, TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import DeclineReason, DeltaCodec, FailureReason, ResultOffer
from tests.coordinator.samples import make_report
from tests.coordinator.scene import ARTIFACTS, DELTA, LEVELS, Scene, only

FP32, INT8, INT4 = DeltaCodec.FP32, DeltaCodec.INT8, DeltaCodec.INT4


class Chosen:
    """A policy that chooses what it is told to, and keeps what it saw."""

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self.choices, self.seen = dict(choices), list[Observation]()

    def initial(self) -> Known:
        """Nothing is learned."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The choices of those who are asked about."""
        self.seen.append(observation)
        asked = [device.name for device in observation.devices if device.name in self.choices]
        return Decision({name: self.choices[name] for name in asked}), state


class Choosing(Scene):
    """Rounds under a policy that chooses so."""

    def __init__(
        self, choices: Mapping[str, Choice], rule: Rule = Rule.FREEZE_A, past: Past | None = None, **transfer: Any
    ) -> None:
        super().__init__()
        self.policy = Chosen(choices)
        config = RoundsConfig(count=4, devices=2, wait_s=10, deadline_s=100)
        tasks = TaskMaker("run", TrainingConfig(steps=3), rule)
        plan = Plan(config, tasks, LEVELS, ARTIFACTS, transfer=TransferConfig(**transfer))
        self.rounds = Rounds(plan, self.policy, past or Past(0, blob_of(b"0")), self.now_s)

    def next_round(self) -> list[Instruction]:
        """The round is aggregated."""
        return self.tell(AdapterReady(self.rounds.round, blob_of(b"next")))


def choosing(**choices: Choice) -> Choosing:
    """Two devices in round 1."""
    scene = Choosing(choices)
    for device in choices:
        scene.hello(device)
    return scene


def answers(scene: Choosing) -> list[tuple[str, str, Outcome]]:
    """What the policy has been told so far."""
    return [(a.device, a.level, a.outcome) for seen in scene.policy.seen for a in seen.answers]


def test_a_choice_is_a_task() -> None:
    """Level, codec and power are the task's; what was chosen is told in words."""
    scene = choosing(a=Choice("small", INT4, power=0.5), b=Choice("large"))
    task = scene.task("a")
    assert (task.artifact, task.delta_codec, task.power) == (ARTIFACTS["small"], INT4, 0.5)
    assert (scene.task("b").delta_codec, scene.task("b").power) == (FP32, 1.0)
    assert [i.words for i in only(GiveTask, scene.asked)] == [
        "small, int4 delta, 2 of 4 threads",
        "large, fp32 delta, 4 of 4 threads",
    ]


def test_what_is_no_choice_is_dropped_and_said() -> None:
    """A codec that the rule has no residuals for never reaches a device."""
    scene = Choosing({"a": Choice("large", DeltaCodec.TOP_K), "b": Choice("large")}, Rule.LORA_SVD)
    scene.hello("a")
    (decided,) = only(RecordDecision, scene.hello("b"))
    assert decided.decided.decision.notes == (
        "a: its choice is dropped, deltas may not be in <DeltaCodec.TOP_K: 'top-k'>",
    )
    assert [i.device for i in only(GiveTask, scene.asked)] == ["b"]


@pytest.mark.parametrize(("rule", "keeps"), [(Rule.FREEZE_A, True), (Rule.LORA_SVD, False)])
def test_a_codec_that_changes_keeps_its_residual(rule: Rule, keeps: bool) -> None:  # noqa: FBT001 - a case
    """Where coordinates last, a coarse delta leaves a residual, and the next one, exact ones too, pays it back."""
    codecs, named = (FP32, INT8, FP32, INT4), list[str]()
    scene = Choosing({"a": Choice("large", FP32), "b": Choice("large")}, rule)
    scene.hello("a")
    scene.hello("b")
    for codec, later in zip(codecs, (*codecs[1:], FP32), strict=True):
        named.append(scene.task("a").residual)
        assert scene.task("a").delta_codec is codec
        assert scene.task("b").residual == "", "who never sent a coarse one owes nothing"
        scene.deliver("a")
        scene.deliver("b")
        scene.policy.choices["a"] = Choice("large", later)
        scene.next_round()
    assert named == (["", "run", "run", "run"] if keeps else [""] * 4)


def test_who_owes_is_known_after_a_restart() -> None:
    """The ledger's tasks say which devices were given one that leaves a residual."""
    maker, places = TaskMaker("run", TrainingConfig(steps=3), Rule.FREEZE_A), {"a": INT8, "b": FP32}
    entries = []
    for device, codec in places.items():
        choice = Choice("large", codec)
        task = maker.make(Place(device, 1, 1), choice, artifact=DELTA, adapter=DELTA, left_s=1.0)
        entries.append(Entry(device, choice, 1, task, TaskState.COMMITTED))
    scene = Choosing(dict.fromkeys("ab", Choice("large", FP32)), past=Past(1, DELTA, entries=tuple(entries)))
    scene.hello("a")
    scene.hello("b")
    assert [scene.task(device).residual for device in "ab"] == ["run", ""]


def test_the_bandwidth_is_shared_out_while_a_round_is_open() -> None:
    """By shares, of those that take part: anew when somebody joins or drops out, and no more once it is closed."""
    scene = Choosing(
        {"a": Choice("large", share=3), "b": Choice("large"), "c": Choice("large", share=4)}, megabytes_s=8
    )
    scene.hello("a")
    opening = scene.hello("b")
    assert only(SetRates, opening) == [SetRates({"a": 6e6, "b": 2e6})]
    assert [i.words.split(", ")[2] for i in only(GiveTask, opening)] == [
        "75 % of the bandwidth",
        "25 % of the bandwidth",
    ]
    joining = scene.hello("c")
    assert only(SetRates, joining) == [SetRates({"a": 3e6, "b": 1e6, "c": 4e6})]
    assert only(GiveTask, joining)[0].words.split(", ")[2] == "50 % of the bandwidth"
    assert only(SetRates, scene.fail("c", FailureReason.NON_FINITE)) == [SetRates({"a": 6e6, "b": 2e6})]
    scene.deliver("a")
    assert only(SetRates, scene.deliver("b")) == [SetRates({})]


def test_rates_are_set_again_by_a_coordinator_that_was_restarted() -> None:
    """With the first event, whatever it is, from the tasks in the ledger; a device's own bound holds, too."""
    scene = choosing(a=Choice("large", share=3), b=Choice("large"))
    past = Past(0, DELTA, attempt=1, open=True, entries=scene.rounds.entries(), fleet=scene.rounds.fleet)
    again = Choosing({}, past=past, megabytes_s=8, device_megabytes_s=5)
    assert again.tell(Tick()) == [SetRates({"a": 5e6, "b": 2e6})]
    assert again.tell(Tick()) == []


def test_without_a_bandwidth_nothing_is_limited() -> None:
    """Shares mean nothing then."""
    scene = choosing(a=Choice("large", share=3), b=Choice("large"))
    scene.deliver("a")
    assert not only(SetRates, scene.asked)


def test_lost_is_what_the_deadline_took_and_what_failed() -> None:
    """Silence and failures are told to the policy in the next round; what was too large is no loss, nor is a stop."""
    scene = choosing(a=Choice("large"), b=Choice("large"), c=Choice("large"))
    scene.hello("d")
    scene.fail("b", FailureReason.WORKER_DIED)
    scene.decline("c", DeclineReason.OVER_BUDGET)
    scene.tell(Tick(), after_s=100)
    scene.tell(Tick(), after_s=10)
    assert set(answers(scene)) == {
        ("a", "large", Outcome.LOST),
        ("b", "large", Outcome.LOST),
        ("c", "large", Outcome.OVER_BUDGET),
    }
    views = {device.name: device for device in scene.policy.seen[-1].fleet}
    assert [(views[name].asked, views[name].answered) for name in "abcd"] == [(1, 0), (1, 0), (0, 0), (0, 0)]
    scene.tell(StopAsked())
    assert [e.state for e in scene.rounds.entries() if not e.state.final] == []
    assert TaskState.LOST not in {e.state for e in scene.rounds.entries()}


def heard(scene: Choosing, device: str, **report: Any) -> FetchDelta:
    """The device offers a result with a report of these numbers."""
    told = dataclasses.replace(make_report(), **report)
    return only(FetchDelta, scene.tell(ResultHeard(device, ResultOffer(scene.task(device).task_id, DELTA, told))))[0]


def test_an_answer_is_what_was_measured() -> None:
    """Of four threads two were used; what was not training was a worker's start and the wire, never less than none."""
    scene = choosing(a=Choice("small", power=0.5), b=Choice("large"))
    scene.now_s += 20
    measured = {"threads": 2, "step_ms": 500.0, "wall_s": 12.0, "down_bytes": 700, "up_bytes": 300, "loss_before": 3.5}
    fetch = heard(scene, "a", **measured)
    answer = finished(fetch.answer, 9, fetch.offered_s, scene.now_s + 2)
    assert answer == Answer(
        "a",
        "small",
        Outcome.DONE,
        make_report().budget_bytes,
        make_report().peak_bytes,
        wall_s=12.0,
        round=1,
        step_s=0.5,
        power=0.5,
        loss=3.5,
        examples=9,
        wire_bytes=1000,
        wire_s=10.0 - STARTS_S,
        beside_s=max(0.0, 12.0 - 0.5 * make_report().steps) + STARTS_S,
    )
    short = finished(fetch.answer, 9, fetch.offered_s, scene.now_s - 7)
    assert short.wire_s == 0.5, "half of what was not training, where that is short"
    assert finished(fetch.answer, 9, fetch.offered_s, scene.now_s - 20).wire_s == 0
    assert finished(fetch.answer, 9, None, scene.now_s).wire_s == 0, "nobody knows when it was offered"


def test_a_report_that_lies_is_believed_within_reason() -> None:
    """Numbers beyond any task are cut off, so that what is reckoned with them can be kept and read again."""
    scene = choosing(a=Choice("small"), b=Choice("large"))
    lie = {"threads": -3, "step_ms": 1e308, "wall_s": -1.0, "down_bytes": (1 << 63) - 1, "up_bytes": (1 << 63) - 1}
    answer = heard(scene, "a", **lie).answer
    assert (answer.power, answer.wall_s) == (1.0, 0.0)
    assert answer.step_s <= 1e6
    assert answer.wire_bytes <= 2e15


def test_a_policy_sees_what_a_device_was_let() -> None:
    """Its part of the bandwidth, or the bound that all devices have."""
    scene = Choosing({"a": Choice("large", share=3), "b": Choice("large")}, megabytes_s=8, device_megabytes_s=5)
    scene.hello("a")
    scene.hello("b")
    assert [heard(scene, device).answer.allowed_bytes_s for device in "ab"] == [5e6, 2e6]
    alone = Choosing({"a": Choice("large"), "b": Choice("large")}, device_megabytes_s=5)
    alone.hello("a")
    alone.hello("b")
    assert heard(alone, "a").answer.allowed_bytes_s == 5e6


def test_a_policy_sees_how_far_the_run_is() -> None:
    """The losses that are measured meanwhile are in the terms of the next decision."""
    scene = choosing(a=Choice("large"), b=Choice("large"))
    assert (scene.policy.seen[0].terms.loss, scene.policy.seen[0].terms.first_loss) == (0, 0)
    for version, loss in ((0, 4.0), (1, 3.0)):
        assert scene.tell(LossMeasured(version, loss)) == []
    scene.deliver("a")
    scene.deliver("b")
    scene.next_round()
    terms = scene.policy.seen[-1].terms
    assert (terms.round, terms.rounds, terms.steps, terms.loss, terms.first_loss) == (2, 4, 3, 3.0, 4.0)
    assert terms.codecs == (FP32, DeltaCodec.FP16, INT8, INT4)
    assert terms.adapter_bytes == blob_of(b"next").size_bytes


class OnlyTheFirst:
    """Gives the first of the devices that it is asked about the small level."""

    def initial(self) -> None:
        """It learns nothing."""

    def decide(self, observation: Observation, _state: None) -> tuple[Decision, None]:
        """See the class."""
        return Decision({observation.devices[0].name: Choice("small")}), None


def test_whom_the_policy_leaves_out_is_out_of_the_attempt() -> None:
    """It does not come in by saying Hello again; as a new session, of which nothing was decided, it is asked about."""
    scene = Scene(policy=OnlyTheFirst())
    scene.hello("a")
    assert {i.device for i in only(GiveTask, scene.hello("b"))} == {"a"}
    assert not only(GiveTask, scene.hello("b"))
    assert {i.device for i in only(GiveTask, scene.hello("b", session="s2"))} == {"b"}


def test_a_round_has_at_least_its_quorum() -> None:
    """A policy that chooses fewer would have the round repeated for ever: others join."""
    scene = Scene(policy=OnlyTheFirst(), quorum=2)
    scene.hello("a")
    assert {i.device for i in only(GiveTask, scene.hello("b"))} == {"a", "b"}
