"""The protocol's cores under any order of events: messages lost, doubled, late and damaged, either side killed.

No sockets, threads or clocks: hypothesis chooses what happens next. What outlives a kill is what does in a fleet: the
coordinator's ledger, by the same code, and a device's outbox. Afterwards the faults stop, and all must complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from coordinator.answers import finished
from coordinator.config import Rule, TrainingConfig
from coordinator.course import Late as LateRule
from coordinator.course import Mode, RoundsConfig
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    CancelTask,
    DeclineHeard,
    FailureHeard,
    FetchDelta,
    GiveTask,
    HelloHeard,
    OfferAgain,
    OpenRound,
    Reconnected,
    ResultCommitted,
    ResultHeard,
    SendReceipt,
)
from coordinator.events import Event as CoordinatorEvent
from coordinator.events import Tick as CoordinatorTick
from coordinator.ledger import Ledger
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level
from coordinator.round_states import State
from coordinator.rounds import Rounds
from coordinator.scribe import write_down
from coordinator.task_book import TaskMaker
from edge_sdk import events as device
from edge_sdk.phases import Phase
from edge_sdk.session import Session
from edge_sdk.supervisor import WorkerFailed, WorkerFinished
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import (
    FailureReason,
    Message,
    Receipt,
    ResultOffer,
    TaskCancel,
    TaskDeclined,
    TaskFailed,
    TaskOffer,
    Welcome,
)
from tests.coordinator.samples import make_hello
from tests.edge_sdk.samples import MB, make_manifest, make_report
from tests.edge_sdk.wire.lines import SHM

EXAMPLES, STEPS = 40, 60
ROUNDS = 2
LATE_ROUNDS, MOST = 4, 2  # and how many versions late a result may be
DEVICES = ("a", "b")
INDEX = st.integers(0, 1 << 16)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one."""
    return tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None)


class Device:
    """A session, and what outlives it: the results in its outbox, and those that it was told to forget."""

    def __init__(self, name: str) -> None:
        self.name, self.kept, self.forgotten, self.version = name, dict[str, ResultOffer](), set[str](), 0
        self.start(0.0)

    def start(self, now_s: float) -> None:
        """A new process of it: the outbox is remembered, and the version of what it took."""
        hello = dataclasses.replace(make_hello(self.name), heard_version=self.version)
        self.session = Session(hello, tuple(self.kept.values()), now_s)
        self.pending: device.Event | None = None
        self.working = ""

    def tell(self, event: device.Event, now_s: float) -> list[Message]:
        """The messages that it sends because of `event`; what it asks for is done, or is pending."""
        sent = list[Message]()
        for asked in self.session.handle(event, now_s):
            if isinstance(asked, device.Send):
                sent.append(asked.message)
            elif isinstance(asked, device.Greet):
                sent += self.tell(Welcome("s", now_s), now_s)
            elif isinstance(asked, device.KeepVersion):
                self.version = asked.version
            elif isinstance(asked, device.FetchManifest):
                self.pending = device.ManifestHere(asked.task.task_id, make_manifest())
            elif isinstance(asked, device.FetchFiles):
                self.pending = device.FilesHere(asked.task.task_id, 1)
            elif isinstance(asked, device.StopFetching):
                self.pending = None
            elif isinstance(asked, device.StartWorker):
                assert not self.working, "two workers"
                self.working = asked.task.task_id
            elif isinstance(asked, device.CancelWorker):
                self.pending = WorkerFailed(self.working, FailureReason.CANCELLED, 0, "")
            else:
                sent += self.keep(asked, now_s)
        return sent

    def keep(self, asked: device.Instruction, now_s: float) -> list[Message]:
        """Do with its outbox what is asked for; the messages that this leads to."""
        if isinstance(asked, device.KeepResult):
            delta = blob_of(f"{asked.task_id}".encode())
            self.kept[asked.task_id] = ResultOffer(asked.task_id, delta, make_report())
            return self.tell(device.ResultKept(self.kept[asked.task_id]), now_s)
        if isinstance(asked, device.ForgetResult):
            del self.kept[asked.offer.task_id]
            if asked.accepted:
                self.forgotten.add(asked.offer.task_id)
        return []

    def goes_on(self, now_s: float, *, well: bool) -> list[Message]:
        """What it waits for happens: a fetch is done, a worker ends."""
        if self.pending is not None:
            event, self.pending = self.pending, None
        elif self.working and well:
            event = WorkerFinished(self.working, make_report(), pathlib.Path("delta"))
        elif self.working:
            event = WorkerFailed(self.working, FailureReason.WORKER_DIED, 0, "")
        else:
            return []
        if isinstance(event, (WorkerFinished, WorkerFailed)):
            self.working = ""
        return self.tell(event, now_s)


class Fleet(RuleBasedStateMachine):
    """A coordinator over a real ledger, two devices, and all messages between them under way at once."""

    COURSE = RoundsConfig(count=ROUNDS, devices=2, quorum=1, deadline_s=300, wait_s=10, attempts=1000)

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(self.stack.enter_context(scratch()))
        self.now_s, self.version = 0.0, 0  # the version is in the registry, which outlives the coordinator
        self.up, self.down = list[tuple[str, Message]](), list[tuple[str, Message]]()
        self.devices = {name: Device(name) for name in DEVICES}
        self.accepted = set[str]()  # by receipts, as devices heard them
        self.aggregated = dict[int, tuple[str, ...]]()
        self.ledger = self.opened()
        self.start_coordinator()

    # ---- the coordinator, as `daemon` has it

    def opened(self) -> Ledger:
        """The ledger; not on a disk's time."""
        ledger = Ledger(self.folder / "ledger.sqlite", "machine", "digest")
        ledger._db.execute("PRAGMA synchronous = OFF")
        ledger.begin(blob_of(b"adapter 0"))
        return ledger

    def start_coordinator(self) -> None:
        """A new process of it: only the ledger is remembered."""
        past = self.ledger.past()
        assert past is not None
        self.fetching = dict[str, FetchDelta]()
        self.aggregating: AggregateRound | None = None
        self.rounds = Rounds(self.plan(), LargestThatFits(), past, self.now_s)
        self.resume(past)

    def plan(self) -> Plan:
        """Two rounds of one level."""
        tasks = TaskMaker(self.ledger.run, TrainingConfig(steps=2, tokens=16), Rule.LORA_SVD)
        return Plan(self.COURSE, tasks, (Level("fp32", 50 * MB),), {"fp32": blob_of(b"manifest")})

    def resume(self, _past: Past) -> None:
        """Time lets an open round that was complete close."""
        self.tell(CoordinatorTick())

    def tell(self, event: CoordinatorEvent) -> None:
        """Each instruction is written before it is carried out."""
        for asked in self.rounds.handle(event, self.now_s):
            write_down(self.ledger, asked)
            if isinstance(asked, OpenRound):
                self.version += 1
            elif isinstance(asked, (GiveTask, OfferAgain)):
                self.down.append((asked.device, TaskOffer(asked.task, self.version, self.now_s)))
            elif isinstance(asked, CancelTask):
                self.fetching.pop(asked.task_id, None)
                self.down.append((asked.device, TaskCancel(asked.task_id, asked.reason)))
            elif isinstance(asked, SendReceipt):
                self.down.append((asked.device, asked.receipt))
            elif isinstance(asked, FetchDelta):
                self.fetching[asked.task.task_id] = asked
            elif isinstance(asked, AggregateRound):
                self.aggregating = asked

    def hears(self, name: str, message: Message) -> None:
        """What a message means to it."""
        if isinstance(message, ResultOffer):
            self.tell(ResultHeard(name, message))
        elif isinstance(message, TaskDeclined):
            self.tell(DeclineHeard(name, message))
        elif isinstance(message, TaskFailed):
            self.tell(FailureHeard(name, message))
        elif type(message).__name__ == "Hello":
            self.ledger.hello(message)  # type: ignore[arg-type]
            self.tell(HelloHeard(message))  # type: ignore[arg-type]

    # ---- what may happen

    @rule(lots=st.lists(INDEX, min_size=1, max_size=16))
    def goes_on(self, lots: list[int]) -> None:
        """For a while nothing is wrong: what can happen next does, in any order."""
        for lot in lots:
            if not (possible := self.possible()):
                for name in DEVICES:
                    self.connects(name)
                self.time_passes(0.1)
                continue
            kind, which = possible[lot % len(possible)]
            if kind == "up":
                self.goes_up(which, again=False)
            elif kind == "down":
                self.comes_down(which, again=False)
            elif kind == "delta":
                self.delta_arrives(which, killed=False)
            elif kind == "adapter":
                self.aggregates("")
            else:
                self.device_goes_on(kind, well=True)

    def possible(self) -> list[tuple[str, int]]:
        """What can happen next, and to which of several."""
        found = [("up", k) for k in range(len(self.up))] + [("down", k) for k in range(len(self.down))]
        found += [("delta", k) for k in range(len(self.fetching))]
        found += [("adapter", 0)] * (self.aggregating is not None)
        return found + [(name, 0) for name, one in self.devices.items() if one.pending or one.working]

    @rule(after_s=st.sampled_from([0.1, 6.0, 31.0, 120.0]))
    def time_passes(self, after_s: float) -> None:
        """Everybody notices."""
        self.now_s += after_s
        self.tell(CoordinatorTick())
        for one in self.devices.values():
            self.says(one, one.tell(device.Tick(), self.now_s))

    @rule(name=st.sampled_from(DEVICES))
    def connects(self, name: str) -> None:
        """A device introduces itself."""
        one = self.devices[name]
        self.says(one, one.tell(Welcome("s", self.now_s), self.now_s))

    @rule()
    def broker_comes_back(self) -> None:
        """What was under way is gone; all say everything again."""
        self.up.clear()
        self.down.clear()
        self.tell(Reconnected())
        for name in DEVICES:
            self.connects(name)

    @rule(which=INDEX, again=st.booleans())
    def goes_up(self, which: int, *, again: bool) -> None:
        """Any message to the coordinator comes, and may come again."""
        if self.up:
            k = which % len(self.up)
            self.hears(*(self.up[k] if again else self.up.pop(k)))

    @rule(which=INDEX, again=st.booleans())
    def comes_down(self, which: int, *, again: bool) -> None:
        """Any message to a device comes, and may come again."""
        if self.down:
            k = which % len(self.down)
            name, message = self.down[k] if again else self.down.pop(k)
            one = self.devices[name]
            if isinstance(message, Receipt) and message.accepted:
                self.accepted.add(message.task_id)
            assert isinstance(message, (TaskOffer, TaskCancel, Receipt))
            self.says(one, one.tell(message, self.now_s))

    @rule(which=INDEX, upwards=st.booleans())
    def is_lost(self, which: int, *, upwards: bool) -> None:
        """A message does not come."""
        bag = self.up if upwards else self.down
        if bag:
            bag.pop(which % len(bag))

    @rule(name=st.sampled_from(DEVICES), well=st.booleans())
    def device_goes_on(self, name: str, *, well: bool) -> None:
        """A fetch is done, or a worker ends, well or not."""
        one = self.devices[name]
        self.says(one, one.goes_on(self.now_s, well=well))

    @rule(which=INDEX, killed=st.booleans())
    def delta_arrives(self, which: int, *, killed: bool) -> None:
        """A delta is whole and committed; the coordinator may be killed before it says so."""
        if not self.fetching:
            return
        task_id = sorted(self.fetching)[which % len(self.fetching)]
        wanted = self.fetching.pop(task_id)
        answer = finished(wanted.answer, 4, wanted.offered_s, self.now_s)
        self.ledger.commit_result(task_id, wanted.delta, 0.1, wanted.report, answer)
        if killed:
            self.coordinator_is_killed()
            return
        self.tell(ResultCommitted(task_id, answer))

    @rule(killed=st.sampled_from(["", "before", "after"]))
    def aggregates(self, killed: str) -> None:
        """The next adapter is made; the coordinator may be killed before that is committed, or after."""
        asked = self.aggregating
        if asked is None:
            return
        self.aggregating = None
        if killed == "before":
            self.coordinator_is_killed()
            return
        made = blob_of(f"adapter {asked.round}".encode())
        self.ledger.commit_adapter(asked, made, 0.0)
        assert asked.round not in self.aggregated
        self.aggregated[asked.round] = asked.task_ids
        if killed == "after":
            self.coordinator_is_killed()
            return
        self.tell(AdapterReady(asked.round, made, {}))

    @rule()
    def coordinator_is_killed(self) -> None:
        """And started again, over the same ledger."""
        self.ledger.close()
        self.ledger = self.opened()
        self.start_coordinator()

    @rule(name=st.sampled_from(DEVICES))
    def device_is_killed(self, name: str) -> None:
        """And started again, over the same outbox."""
        self.devices[name].start(self.now_s)

    def says(self, one: Device, messages: list[Message]) -> None:
        """Put what a device says under way."""
        self.up += [(one.name, message) for message in messages]

    # ---- what must hold

    @invariant()
    def nothing_counts_twice_and_nothing_accepted_is_lost(self) -> None:
        """Aggregates take each result once; what a device forgot as accepted is in the ledger."""
        rows = self.ledger._db.execute("SELECT task_id FROM results").fetchall()
        committed = {task_id for (task_id,) in rows}
        assert len(rows) == len(committed)
        used = [task_id for tasks in self.aggregated.values() for task_id in tasks]
        assert len(set(used)) == len(used)
        assert set(used) <= committed
        assert self.accepted <= committed
        for one in self.devices.values():
            assert one.forgotten <= committed
        written = self.ledger._db.execute("SELECT task_id, version FROM results WHERE version IS NOT NULL").fetchall()
        assert dict(written) == {task_id: version for version, tasks in self.aggregated.items() for task_id in tasks}
        self.what_counts_is_as_late_as_it_may()

    def what_counts_is_as_late_as_it_may(self) -> None:
        """Each result is in the round of its task, and each device once in a round."""
        names = [(round_, task_id.rsplit(".", 1)[1]) for round_, tasks in self.aggregated.items() for task_id in tasks]
        assert len(set(names)) == len(names), "a device counts twice in a round"
        assert all(_round_of(task_id) == round_ for round_, tasks in self.aggregated.items() for task_id in tasks)

    def teardown(self) -> None:
        """The faults stop: all rounds are done, every result has its word, and the ledger agrees."""
        for _ in range(400):
            if self.rounds.state is State.DONE and not any(one.kept for one in self.devices.values()):
                break
            self.goes_well()
        assert self.rounds.state is State.DONE
        assert not any(one.kept for one in self.devices.values())
        assert sorted(self.aggregated) == list(range(1, self.COURSE.count + 1))
        self.nothing_counts_twice_and_nothing_accepted_is_lost()
        self.nothing_is_left()
        self.ledger.close()
        self.stack.close()

    def nothing_is_left(self) -> None:
        """The results of an attempt that was repeated are in no adapter; no task is open."""
        assert not self.ledger._db.execute("SELECT 1 FROM tasks WHERE state = 'offered'").fetchall()

    def goes_well(self) -> None:
        """Time passes, everybody is connected, and everything arrives once, in order."""
        self.time_passes(31.0)
        for name, one in self.devices.items():
            if one.session.phase is Phase.IDLE:
                self.connects(name)
            self.device_goes_on(name, well=True)
        while self.up:
            self.goes_up(0, again=False)
        while self.down:
            self.comes_down(0, again=False)
        while self.fetching:
            self.delta_arrives(0, killed=False)
        self.aggregates("")


class Late(Fleet):
    """The same fleet, in which a result counts that is late: not in its own round, and no device is waited for."""

    COURSE = dataclasses.replace(
        Fleet.COURSE, count=LATE_ROUNDS, participants=1, extra=1, late=LateRule.DISCOUNT, max_staleness=MOST
    )

    def what_counts_is_as_late_as_it_may(self) -> None:
        """No result counts before its task was made, nor more versions later than is allowed."""
        for version, tasks in self.aggregated.items():
            assert all(0 <= version - _round_of(task_id) <= MOST for task_id in tasks)

    def nothing_is_left(self) -> None:
        """Whatever was accepted is in an adapter, also what came when its round was over, or repeated."""
        super().nothing_is_left()
        assert not self.ledger._db.execute("SELECT 1 FROM results WHERE version IS NULL").fetchall()


class Buffered(Late):
    """The same fleet, which never waits: every two results are a version, whoever they are from."""

    COURSE = dataclasses.replace(
        Fleet.COURSE, count=LATE_ROUNDS, mode=Mode.BUFFERED, buffer=2, max_staleness=MOST, deadline_s=100
    )

    def nothing_is_left(self) -> None:
        """Each version is of two results at least."""
        super().nothing_is_left()
        assert all(len(tasks) >= 2 for tasks in self.aggregated.values())


def _round_of(task_id: str) -> int:
    return int(task_id.split(".")[1])


@pytest.mark.parametrize("fleet", [Fleet, Late, Buffered])
def test_whatever_happens_every_result_counts_once(fleet: type[Fleet]) -> None:
    """Messages lost, doubled and reordered, brokers emptied, both sides killed anywhere: all complete, once."""
    run_state_machine_as_test(
        fleet,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )
