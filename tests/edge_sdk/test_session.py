"""What a device decides, event by event, without anything that could be slow or break."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engine.plan import Plan, choose_plan, predicted
from edge_sdk.events import (
    CancelWorker,
    CheckFiles,
    Event,
    FetchFailed,
    FetchFiles,
    FetchManifest,
    FilesHere,
    ForgetResult,
    Greet,
    Instruction,
    KeepResult,
    ManifestHere,
    ResultKept,
    Say,
    Send,
    StartWorker,
    StopFetching,
    Tick,
)
from edge_sdk.phases import TRANSITIONS, Phase
from edge_sdk.session import PROGRESS_S, RESEND_S, Session
from edge_sdk.supervisor import WorkerFailed, WorkerFinished, WorkerProgress
from edge_sdk.wire.manifest import ClassesLoss, ImageSpec, ModelSpec, TaskType
from edge_sdk.wire.messages import (
    DeclineReason,
    FailureReason,
    Hello,
    Message,
    NotWelcome,
    Receipt,
    RefusalReason,
    ResultOffer,
    Task,
    TaskCancel,
    TaskDeclined,
    TaskFailed,
    TaskOffer,
    TaskProgress,
    Unwelcome,
    Welcome,
)
from tests.edge_sdk.samples import FILE, MB, TOKENS, make_hello, make_manifest, make_offer, make_report, make_task

T = TypeVar("T")
DELTA = pathlib.Path("delta")


class Scene:
    """A session and a clock. `tell` gives the messages sent; `asked` collects every other instruction."""

    def __init__(self, *results: ResultOffer) -> None:
        self.now_s, self.asked = 0.0, list[Instruction]()
        self.session = Session(make_hello(), results, self.now_s)

    def tell(self, event: Event) -> list[Message]:
        """The messages sent because of `event`."""
        found = self.session.handle(event, self.now_s)
        self.asked = [one for one in found if not isinstance(one, Send)]
        return [one.message for one in found if isinstance(one, Send)]

    def offer(self, task: Task, version: int = 1) -> list[Message]:
        """The messages sent because of a task's offer, which was under way for no time."""
        return self.tell(TaskOffer(task, version, self.now_s))

    def wanted(self, kind: type[T]) -> T:
        """The one instruction of that kind that the last event gave."""
        (found,) = [one for one in self.asked if isinstance(one, kind)]
        return found

    def train(self, task: Task) -> None:
        """Bring `task` to its training."""
        self.offer(task)
        self.tell(ManifestHere(task.task_id, make_manifest()))
        self.tell(FilesHere(task.task_id, 5))
        assert self.session.phase is Phase.TRAINING


def finished(task: Task, peak_bytes: int = 60 * MB) -> WorkerFinished:
    """A worker's good end."""
    return WorkerFinished(task.task_id, make_report(peak_bytes), DELTA)


def test_a_task_goes_all_the_way() -> None:
    """Manifest, plan, files, worker, outbox, offer: each step is asked for when the one before it is done."""
    scene, task = Scene(), make_task()
    assert scene.offer(task) == []
    assert scene.wanted(FetchManifest).task == task
    scene.tell(ManifestHere(task.task_id, make_manifest()))
    assert scene.wanted(FetchFiles).manifest == make_manifest()
    scene.tell(FilesHere(task.task_id, 1234))
    assert scene.wanted(StartWorker).correction == 1
    scene.tell(finished(task))
    kept = scene.wanted(KeepResult)
    assert kept.report == dataclasses.replace(make_report(), down_bytes=1234)
    offer = ResultOffer(task.task_id, FILE, kept.report)
    assert scene.tell(ResultKept(offer)) == [offer]
    assert scene.session.phase is Phase.IDLE
    assert scene.session.offered(FILE.sha256) == FILE
    scene.tell(Receipt(task.task_id, accepted=True, reason=None, detail=""))
    assert scene.wanted(ForgetResult).offer == offer
    assert scene.session.offered(FILE.sha256) is None


@pytest.mark.parametrize("accepted", [True, False])
def test_a_residual_is_used_by_one_result_at_a_time(*, accepted: bool) -> None:
    """A task with feedback begins with none while another result waits, and with it again after the last word."""
    scene, task = Scene(make_offer("earlier")), make_task("now", residual="run")
    scene.train(task)
    assert not scene.wanted(StartWorker).feedback
    scene.tell(WorkerFailed("now", FailureReason.NON_FINITE, 5, "NaN"))
    scene.tell(Receipt("earlier", accepted=accepted, reason=None, detail=""))
    assert scene.wanted(ForgetResult).accepted == accepted
    scene.train(make_task("then", residual="run"))
    assert scene.wanted(StartWorker).feedback
    scene.tell(WorkerFinished("then", make_report(), DELTA, pathlib.Path("residual")))
    assert scene.wanted(KeepResult).residual_path == pathlib.Path("residual")


def test_a_cancelled_result_has_left_nothing_out() -> None:
    """The coordinator did not count it."""
    scene = Scene(make_offer("t"))
    scene.tell(TaskCancel("t", "why not"))
    assert not scene.wanted(ForgetResult).accepted


def test_without_a_name_nothing_is_kept() -> None:
    """A task that names no residual gets no feedback."""
    scene = Scene()
    scene.train(make_task())
    assert not scene.wanted(StartWorker).feedback


def test_what_does_not_fit_is_declined_with_its_need() -> None:
    """A level over the budget is declined before a byte of it is fetched, saying what the leanest plan needs."""
    scene, task = Scene(), make_task()
    scene.offer(task)
    (answer,) = scene.tell(ManifestHere(task.task_id, make_manifest(process_bytes=200 * MB)))
    assert isinstance(answer, TaskDeclined)
    assert (answer.reason, answer.budget_bytes) == (DeclineReason.OVER_BUDGET, 100 * MB)
    assert answer.needed_bytes > 200 * MB
    assert scene.session.phase is Phase.IDLE


@pytest.mark.parametrize("allowed", [False, True])
def test_the_task_decides_about_integers(*, allowed: bool) -> None:
    """Fast integer products are planned with where the task allows them, and the worker hears the same task."""
    scene, task = Scene(), make_task(integer_gradients=allowed)
    scene.offer(task)
    scene.tell(ManifestHere(task.task_id, make_manifest(integers_ms=0.01)))
    assert ("integers" in scene.wanted(Say).line) == allowed
    scene.tell(FilesHere(task.task_id, 5))
    assert scene.wanted(StartWorker).task.integer_gradients == allowed


def test_what_was_refused_memory_is_not_tried_again() -> None:
    """A worker that was over budget at a peak below it was refused the rest: the same plan would fail again."""
    scene, task = Scene(), make_task()
    scene.train(task)
    refused = choose_plan(make_manifest(), task.batch, task.tokens, 100 * MB)
    assert isinstance(refused, Plan)
    failure = WorkerFailed(task.task_id, FailureReason.OVER_BUDGET, 99 * MB, "an allocation was refused")
    scene.tell(failure)
    expected = f"peak 99 MB, {refused.peak_bytes / 1e6:.0f} expected, the budget is 100"
    assert scene.wanted(Say).line == f"failed, over-budget: an allocation was refused; {expected}"
    scene.train(make_task("again"))
    correction = scene.wanted(StartWorker).correction
    leaner = choose_plan(make_manifest(), task.batch, task.tokens, 100 * MB, correction)
    assert isinstance(leaner, Plan)
    assert predicted(make_manifest(), task.batch, task.tokens, leaner).peak_bytes < refused.peak_bytes


def test_more_tokens_than_positions_is_declined() -> None:
    """A row longer than the model has positions for cannot be trained on."""
    scene, task = Scene(), make_task(tokens=65, batch=1)
    scene.offer(task)
    (answer,) = scene.tell(ManifestHere(task.task_id, make_manifest(process_bytes=MB)))
    assert isinstance(answer, TaskDeclined)
    assert answer.reason is DeclineReason.INCOMPATIBLE


def test_images_have_the_tokens_that_they_have() -> None:
    """A task that says another number of tokens than the model makes of an image is of some other model."""
    model = ModelSpec("vit", TaskType.IMAGE_CLASSIFICATION, 2, 6, 0, ("a", "b"), TOKENS, ImageSpec(3, 9, 9))
    manifest, head = make_manifest(process_bytes=MB), ClassesLoss("forward", "tensors", (), {"bias": (2,)})
    manifest = dataclasses.replace(manifest, model=model, vocabulary_loss=None, classes_loss=head)
    for tokens in (TOKENS - 1, TOKENS, TOKENS + 1):
        scene, task = Scene(), make_task(tokens=tokens, batch=1)
        scene.offer(task)
        answers = scene.tell(ManifestHere(task.task_id, manifest))
        declined = [answer.reason for answer in answers if isinstance(answer, TaskDeclined)]
        assert declined == ([] if tokens == TOKENS else [DeclineReason.INCOMPATIBLE])
        assert any(isinstance(one, FetchFiles) for one in scene.asked) == (tokens == TOKENS)


def test_an_offer_repeated_gets_the_same_answer() -> None:
    """Declined, failed or done: asked again, the device says it again and does nothing anew."""
    declined, failed, done = (make_task(f"t{k}") for k in range(3))
    scene = Scene(make_offer("t2"))
    scene.offer(declined)
    first = scene.tell(FetchFailed("t0", DeclineReason.NO_SPACE, "full"))
    assert scene.offer(declined) == first
    scene.train(failed)
    again = scene.tell(WorkerFailed("t1", FailureReason.NON_FINITE, 5, "NaN"))
    assert again == [TaskFailed("t1", FailureReason.NON_FINITE, 5, "NaN")]
    assert scene.offer(failed) == again
    assert scene.offer(done) == [make_offer("t2")]
    assert scene.asked == []


def test_a_second_task_hears_busy() -> None:
    """One task at a time; the answer is not remembered, so the task can be had later."""
    scene = Scene()
    scene.train(make_task("first"))
    (answer,) = scene.offer(make_task("second"))
    assert isinstance(answer, TaskDeclined)
    assert answer.reason is DeclineReason.BUSY
    scene.tell(WorkerFailed("first", FailureReason.NON_FINITE, 0, ""))
    assert scene.offer(make_task("second")) == []
    assert scene.wanted(FetchManifest).task.task_id == "second"


@pytest.mark.parametrize("phase", [Phase.MANIFEST, Phase.FILES, Phase.TRAINING])
def test_a_cancelled_task_leaves_nothing_running(phase: Phase) -> None:
    """Whenever it is cancelled, what runs is stopped; what still arrives of it changes nothing."""
    scene, task = Scene(), make_task()
    scene.offer(task)
    if phase is not Phase.MANIFEST:
        scene.tell(ManifestHere(task.task_id, make_manifest()))
    if phase is Phase.TRAINING:
        scene.tell(FilesHere(task.task_id, 5))
    assert scene.tell(TaskCancel(task.task_id, "round closed")) == []
    assert scene.wanted(CancelWorker if phase is Phase.TRAINING else StopFetching)
    for late in (ManifestHere(task.task_id, make_manifest()), FilesHere(task.task_id, 5)):
        assert scene.tell(late) == []
        assert scene.asked == []
    assert scene.tell(finished(task)) == []
    assert scene.asked == []
    assert scene.session.phase is Phase.IDLE


def test_another_task_waits_until_the_worker_has_ended() -> None:
    """A worker that is being ended still has its memory: nothing starts beside it."""
    scene, task = Scene(), make_task("first")
    scene.train(task)
    scene.tell(TaskCancel("first", "why not"))
    (answer,) = scene.offer(make_task("second"))
    assert isinstance(answer, TaskDeclined)
    scene.tell(WorkerFailed("first", FailureReason.CANCELLED, 0, ""))
    scene.offer(make_task("second"))
    assert scene.wanted(FetchManifest)


def test_a_cancelled_result_is_forgotten() -> None:
    """What was not accepted and is cancelled leaves the outbox."""
    scene = Scene(make_offer("t"))
    scene.tell(TaskCancel("t", "the round is closed"))
    assert scene.wanted(ForgetResult).offer == make_offer("t")


def test_a_refused_result_is_forgotten_too() -> None:
    """The coordinator's last word counts, whichever it is."""
    scene = Scene(make_offer("t"))
    scene.tell(Receipt("t", accepted=False, reason=RefusalReason.NOT_FINITE, detail="NaN"))
    assert scene.wanted(ForgetResult).offer == make_offer("t")


def test_results_are_offered_until_their_receipt() -> None:
    """After every welcome, and after a while of silence."""
    scene = Scene(make_offer("t"))
    for _ in range(2):
        introduced, offered = scene.tell(Welcome("coordinator", scene.now_s))
        assert isinstance(introduced, Hello)
        assert offered == make_offer("t")
    scene.now_s = RESEND_S - 0.1
    assert scene.tell(Tick()) == []
    scene.now_s = RESEND_S
    assert scene.tell(Tick()) == [make_offer("t")]
    scene.tell(Receipt("t", accepted=True, reason=None, detail=""))
    scene.now_s = 3 * RESEND_S
    assert scene.tell(Tick()) == []


def test_a_device_says_what_it_is_busy_with() -> None:
    """So a coordinator that was started anew can tell it to stop, or wait for it."""
    scene = Scene()
    scene.train(make_task("t"))
    (hello,) = scene.tell(Welcome("a new one", scene.now_s))
    assert isinstance(hello, Hello)
    assert hello.task_id == "t"


def test_who_is_not_welcome_stops_and_keeps_its_results() -> None:
    """The task at hand is given up; what waits for its receipt is offered again once the device is welcome."""
    scene = Scene(make_offer("earlier"))
    scene.train(make_task("t"))
    assert scene.tell(NotWelcome(Unwelcome.REVOKED, "the device was revoked")) == []
    assert CancelWorker() in scene.asked
    assert not [one for one in scene.asked if isinstance(one, ForgetResult)]
    assert make_offer("earlier") in scene.tell(Welcome("coordinator", scene.now_s))


def test_a_deadline_ends_a_task_and_an_offer_repeated_moves_it() -> None:
    """The deadline counts from the last offer, on the device's own clock."""
    scene = Scene()
    scene.train(make_task("t", deadline_s=10.0))
    scene.now_s = 9.0
    scene.offer(make_task("t", deadline_s=10.0))
    scene.now_s = 18.0
    assert scene.tell(Tick()) == []
    assert scene.asked == []
    scene.now_s = 19.0
    scene.tell(Tick())
    assert scene.wanted(CancelWorker)


def test_progress_is_said_now_and_then() -> None:
    """Not more than once a second, and always for the last step."""
    scene = Scene()
    scene.train(make_task("t"))
    assert scene.tell(WorkerProgress("t", 1, 3, 2.0)) == [TaskProgress("t", 1, 3, 2.0)]
    assert scene.tell(WorkerProgress("t", 2, 3, 2.0)) == []
    assert scene.tell(WorkerProgress("t", 3, 3, 2.0)) == [TaskProgress("t", 3, 3, 2.0)]
    scene.now_s += PROGRESS_S
    assert scene.tell(WorkerProgress("t", 1, 3, 2.0)) != []


def test_a_damaged_artifact_is_looked_through() -> None:
    """A worker that finds a wrong byte makes the store verify what it has."""
    scene = Scene()
    scene.train(make_task("t"))
    scene.tell(WorkerFailed("t", FailureReason.BAD_ARTIFACT, 0, "a hash differs"))
    assert scene.wanted(CheckFiles).task.task_id == "t"


def test_a_peak_beyond_the_plan_makes_the_next_plan_more_careful() -> None:
    """What this device measured corrects what was predicted elsewhere, until it declines what it cannot hold."""
    scene, first = Scene(), make_task("first")
    scene.train(first)
    scene.tell(WorkerFailed("first", FailureReason.OVER_BUDGET, 130 * MB, "over"))
    scene.offer(make_task("second"))
    (answer,) = scene.tell(ManifestHere("second", make_manifest()))
    assert isinstance(answer, TaskDeclined)
    assert answer.needed_bytes > 100 * MB


def test_every_phase_can_be_left_and_reached() -> None:
    """The table has no dead end and no phase that nothing leads to."""
    assert set(TRANSITIONS) == set(Phase)
    assert {phase for row in TRANSITIONS.values() for phase in row.values()} == set(Phase)
    assert all(TRANSITIONS.values())


TASKS = [make_task(f"t{k}", deadline_s=30.0) for k in range(3)]
EVENTS = st.one_of(
    st.just(Tick()),
    st.sampled_from([Welcome("a", 0.0), Welcome("b", 1.0), NotWelcome(Unwelcome.UNKNOWN, "")]),
    st.builds(TaskOffer, st.sampled_from(TASKS), st.integers(1, 3), st.sampled_from([0.0, 10.0, 40.0])),
    st.sampled_from(TASKS).map(lambda t: TaskCancel(t.task_id, "")),
    st.sampled_from(TASKS).map(lambda t: Receipt(t.task_id, accepted=True, reason=None, detail="")),
    st.sampled_from(["here", "failed", "ended well", "ended badly"]),
)


class World:
    """What an agent would have running; `happens` turns a chosen word into the event that it means now."""

    def __init__(self) -> None:
        self.scene, self.worker = Scene(), ""
        self.fetching: FetchManifest | FetchFiles | None = None

    def happens(self, chosen: Event | str) -> Event | None:
        """The event, or None for one that cannot be now."""
        if not isinstance(chosen, str):
            return chosen
        if self.fetching is not None:
            task_id = self.fetching.task.task_id
            is_first = isinstance(self.fetching, FetchManifest)
            if chosen == "here":
                return ManifestHere(task_id, make_manifest()) if is_first else FilesHere(task_id, 1)
            return FetchFailed(task_id, DeclineReason.NO_SPACE, "") if chosen == "failed" else None
        if self.worker:
            if chosen == "ended well":
                return WorkerFinished(self.worker, make_report(), DELTA)
            if chosen == "ended badly":
                return WorkerFailed(self.worker, FailureReason.WORKER_DIED, 0, "")
        return None

    def tell(self, event: Event) -> list[Message]:
        """Tell the session, and do what it asks for; the messages it sent."""
        if isinstance(event, (WorkerFinished, WorkerFailed)):
            self.worker = ""
        if isinstance(event, (ManifestHere, FilesHere, FetchFailed)):
            self.fetching = None
        self.scene.now_s += 1.0
        sent = self.scene.tell(event)
        for asked in list(self.scene.asked):
            if isinstance(asked, StartWorker):
                assert not self.worker
                self.worker = asked.task.task_id
            elif isinstance(asked, (FetchManifest, FetchFiles)):
                self.fetching = asked
            elif isinstance(asked, StopFetching):
                self.fetching = None
            elif isinstance(asked, KeepResult):
                sent += self.tell(ResultKept(make_offer(asked.task_id)))
        assert not (self.worker and self.fetching)
        return sent


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_one_thing_runs_at_a_time(events: list[Event | str]) -> None:
    """Under any order of events: never two workers, no fetching beside a worker, and no offer without an
    answer or a greeting.
    """
    world = World()
    for chosen in events:
        event = world.happens(chosen)
        if event is None:
            continue
        sent = world.tell(event)
        if isinstance(event, TaskOffer):
            at_work = world.worker or (world.fetching and world.fetching.task.task_id)
            assert sent or at_work == event.task.task_id or Greet() in world.scene.asked
