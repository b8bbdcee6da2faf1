"""What was decided can be decided again from the ledger alone, and whoever would decide otherwise is found out."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, field

import pytest

from coordinator.answers import finished
from coordinator.cli import main
from coordinator.config import Rule, TrainingConfig, load_config
from coordinator.controller.replay import lines, replay
from coordinator.course import RoundsConfig
from coordinator.decision_log import packed, read_decisions, unpacked
from coordinator.errors import LedgerError
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    DeclineHeard,
    Event,
    FetchDelta,
    GiveTask,
    HelloHeard,
    Instruction,
    LossMeasured,
    OfferAgain,
    Reconnected,
    ResultCommitted,
    ResultHeard,
    Tick,
)
from coordinator.ledger import Ledger
from coordinator.plan import Plan
from coordinator.policy.caff import Caff
from coordinator.policy.fitting import Known
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Decision, Level, Observation, Outcome, Policy
from coordinator.rounds import Rounds
from coordinator.scribe import write_down
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import DeclineReason, DeltaCodec, ResultOffer, TaskDeclined
from tests.coordinator.samples import CONFIG, MB, make_hello, make_report

LEVELS = tuple(
    Level(name, needs * MB, 10 * MB, upload_bytes=dict.fromkeys(DeltaCodec, 9), files={name: 10 * MB}, step_s=0.01)
    for name, needs in (("large", 200), ("small", 100))
)
PLAN_ROUNDS = RoundsConfig(count=4, devices=2, min_devices=2, deadline_s=1000, wait_s=0, quorum=1)


@dataclass
class Run:
    """A coordinator over a real ledger, and devices that deliver, but for one that is too small for what it is given.

    `asks` are what a round still waits for: they are answered by `go`, one at a time.
    """

    path: pathlib.Path
    policy: Policy[Known] = field(default_factory=LargestThatFits)
    now_s: float = 0.0
    asks: list[Instruction] = field(default_factory=list)

    def start(self) -> None:
        """A new process: only the ledger is remembered."""
        self.ledger = Ledger(self.path, "replay", "digest")
        self.ledger.begin(blob_of(b"adapter 0"))
        past = self.ledger.past()
        assert past is not None
        tasks = TaskMaker(self.ledger.run, TrainingConfig(steps=1), Rule.LORA_SVD)
        plan = Plan(PLAN_ROUNDS, tasks, LEVELS, {level.name: blob_of(level.name.encode()) for level in LEVELS})
        self.asks.clear()
        self.rounds = Rounds(plan, self.policy, past, self.now_s)
        for device in "ab":
            self.tell(HelloHeard(make_hello(device, budget_bytes=300 * MB)))
        self.tell(Reconnected())

    def kill(self) -> None:
        """Nothing is said."""
        self.ledger.close()

    def tell(self, event: Event) -> None:
        """As the daemon does."""
        self.now_s += 1
        for instruction in self.rounds.handle(event, self.now_s):
            write_down(self.ledger, instruction)
            self.asks.append(instruction)

    def go(self, until_round: int) -> None:
        """Answer until that round is open."""
        while self.rounds.round < until_round:
            self.answer(self.asks.pop(0) if self.asks else None)

    def answer(self, asked: Instruction | None) -> None:
        """What the world says to it."""
        if asked is None:
            self.tell(Tick())
        elif isinstance(asked, GiveTask) and (asked.device, asked.choice.level) == ("b", "large"):
            self.tell(
                DeclineHeard("b", TaskDeclined(asked.task.task_id, DeclineReason.OVER_BUDGET, 310 * MB, 300 * MB, ""))
            )
        elif isinstance(asked, (GiveTask, OfferAgain)):
            offer = ResultOffer(asked.task.task_id, blob_of(asked.task.task_id.encode()), make_report())
            self.tell(ResultHeard(asked.device, offer))
        elif isinstance(asked, FetchDelta):
            answer = finished(asked.answer, 5, asked.offered_s, self.now_s)
            self.ledger.commit_result(asked.task.task_id, asked.delta, 0.1, asked.report, answer)
            self.tell(ResultCommitted(asked.task.task_id, answer))
        elif isinstance(asked, AggregateRound):
            made = blob_of(f"adapter {asked.round}".encode())
            self.ledger.commit_adapter(asked, made, 0.0)
            self.ledger.evaluation(asked.round, "full", 3.0 / asked.round, None, 8)
            self.tell(LossMeasured(asked.round, 3.0 / asked.round))
            self.tell(AdapterReady(asked.round, made))


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three rounds, killed and started again in the middle of the second, with the third open."""
    run = Run(tmp_path / "out" / "ledger.sqlite")
    run.start()
    run.go(2)
    run.kill()
    run.start()
    run.go(3)
    run.kill()
    return run.path


def test_a_run_that_was_killed_is_decided_again(log: pathlib.Path) -> None:
    """Every decision, before and after the restart; the restart's is marked, and has seen all that came before."""
    replayed = list(replay(log, LargestThatFits()))
    assert all(one.agrees for one in replayed)
    logged = [one.logged for one in replayed]
    assert [one.fresh for one in logged].count(True) == 2
    assert logged[0].fresh
    again = next(one for one in logged[1:] if one.fresh)
    kinds = [(a.device, a.level, a.outcome) for a in again.observation.answers]
    assert kinds[:3] == [
        ("b", "large", Outcome.OVER_BUDGET),
        ("a", "large", Outcome.DONE),
        ("b", "small", Outcome.DONE),
    ]


def test_an_observation_has_what_answers_showed(log: pathlib.Path) -> None:
    """Of the last round: weights, rates, slowness, what is held, and how far the run is."""
    seen = list(read_decisions(log))[-1].observation
    assert (seen.terms.round, seen.terms.rounds, seen.terms.loss) == (3, 4, 1.5)
    assert seen.terms.codecs == (DeltaCodec.FP32, DeltaCodec.FP16, DeltaCodec.INT8, DeltaCodec.INT4)
    views = {device.name: device for device in seen.fleet}
    assert views["a"].holds == {"large"}
    assert views["b"].holds == {"small"}
    report = make_report()
    for view in views.values():
        assert (view.examples, view.loss, view.threads) == (5, report.loss_before, 4)
        assert view.slowness == pytest.approx(report.step_ms / 1e3 * report.threads / 4 / 0.01)
        assert view.asked == view.answered >= 2


def test_another_policy_is_found_out(log: pathlib.Path) -> None:
    """What another one decides is shown beside what was decided."""
    others = list(replay(log, Caff()))
    assert not any(one.agrees for one in others)
    words = list(lines(others[0]))
    assert "1. round 1 of 4: asked about 2 of 2 devices" in words[0]
    assert "  a: large (10 of 10 MB to fetch), fp32 delta, 4 of 4 threads" in words
    assert any("LargestThatFits decided this, Caff decides" in line for line in words)


def test_a_damaged_decision_is_named(log: pathlib.Path) -> None:
    """One line, with its number."""
    with Ledger(log, "replay", "digest") as ledger:
        ledger._db.execute("UPDATE decisions SET observation = x'00' WHERE number = 2")
    with pytest.raises(LedgerError, match="decision 2 is damaged"):
        list(replay(log, LargestThatFits()))


def test_what_is_kept_is_what_was_seen(log: pathlib.Path) -> None:
    """Observations and decisions come back as they were."""
    for one in read_decisions(log):
        assert unpacked(Observation, packed(one.observation)) == one.observation
        assert unpacked(Decision, packed(one.decision)) == one.decision


def test_the_command_replays(log: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 where the policy agrees, 1 where it does not, 2 and one line for a round without a decision."""
    path = log.parent.parent / "coordinator.toml"
    path.write_text(CONFIG)
    assert load_config(path).out == log.parent
    command = ["controller", "replay", "--config", str(path)]
    assert main(command) == 0
    assert "decisions are made again by LargestThatFits" in capsys.readouterr().out
    assert main([*command, "--round", "9"]) == 2
    assert "has no decision for round 9 so far" in capsys.readouterr().err
    path.write_text(CONFIG + "[policy]\nname = 'caff'\n")
    assert main([*command, "--round", "1"]) == 1
    assert "THE REPLAY DISAGREES" in capsys.readouterr().out
