"""Who sits out: a function of refusals alone."""

from __future__ import annotations

import pathlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import Rule, TrainingConfig
from coordinator.course import RoundsConfig
from coordinator.events import (
    AggregateRound,
    GiveTask,
    GiveUp,
    HelloHeard,
    Instruction,
    RepeatRound,
    ResultHeard,
    ResultRefused,
    SitOut,
    Tick,
)
from coordinator.guards import ChecksConfig
from coordinator.ledger import Ledger
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level
from coordinator.quarantine import Quarantine, Spell
from coordinator.round_states import State
from coordinator.rounds import REPEAT_S, Rounds
from coordinator.scribe import write_down
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import RefusalReason, ResultOffer
from tests.coordinator.samples import MB, make_hello, make_report

CHECKS = ChecksConfig(strikes=2, quarantine_rounds=3)


class Scene:
    """Rounds over a real ledger; device b's deltas are refused, a's accepted."""

    def __init__(self, path: pathlib.Path, now_s: float = 0.0, **rounds: Any) -> None:
        self.now_s = now_s
        self.ledger = Ledger(path, "test", "digest")
        self.ledger.begin(blob_of(b"0"))
        past = self.ledger.past()
        assert isinstance(past, Past)
        config = RoundsConfig(**{"count": 100, "devices": 2, "wait_s": 10, "deadline_s": 100, "attempts": 2, **rounds})
        tasks = TaskMaker(self.ledger.run, TrainingConfig(steps=1), Rule.LORA_SVD)
        plan = Plan(config, tasks, (Level("large", MB),), {"large": blob_of(b"large")}, checks=CHECKS)
        self.rounds = Rounds(plan, LargestThatFits(), past, now_s)
        self.said = list[Instruction]()

    def tell(self, *events: object) -> None:
        """Until nothing more is asked for that the scene answers."""
        waiting = list(events)
        while waiting:
            for instruction in self.rounds.handle(waiting.pop(0), self.now_s):  # type: ignore[arg-type]
                write_down(self.ledger, instruction)
                self.said.append(instruction)
                if isinstance(instruction, GiveTask) and instruction.device == "b":
                    task_id = instruction.task.task_id
                    self.ledger.refuse_result(task_id, RefusalReason.NOT_FINITE, "nan")
                    offer = ResultOffer(task_id, blob_of(b"nan"), make_report())
                    waiting += [ResultHeard("b", offer), ResultRefused(task_id, RefusalReason.NOT_FINITE, "nan")]

    def hello(self, *devices: str) -> None:
        """They are there."""
        self.tell(*(HelloHeard(make_hello(device, budget_bytes=9 * MB)) for device in devices))

    def given(self) -> list[str]:
        """Who got a task in the round that is open."""
        return sorted(entry.device for entry in self.rounds.entries())


def pass_round(scene: Scene) -> None:
    """Nobody else delivers in time: the round is tried again."""
    scene.now_s = scene.rounds.deadline_at_s + 1
    scene.tell(Tick())
    scene.now_s += REPEAT_S + 1
    scene.tell(Tick())


@given(st.lists(st.integers(1, 30), max_size=12).map(sorted), st.integers(0, 4), st.integers(1, 5))
def test_every_so_many_refusals_are_a_spell(refused: list[int], strikes: int, rounds: int) -> None:
    """One for each full count of strikes, from its last refusal on; fewer are forgiven, and other devices untouched."""
    checks = ChecksConfig(strikes=strikes, quarantine_rounds=rounds)
    quarantine = Quarantine.of(checks, (("pi", round_) for round_ in refused))
    spells = quarantine.spells()
    assert len(spells) == (len(refused) // strikes if strikes else 0)
    for k, spell in enumerate(spells):
        assert spell == Spell("pi", refused[(k + 1) * strikes - 1], refused[(k + 1) * strikes - 1] + rounds)
    for round_ in range(40):
        inside = any(s.first <= round_ <= s.last for s in spells)
        assert (quarantine.spell("pi", round_) is not None) == inside
        assert quarantine.spell("other", round_) is None


def test_a_device_of_refused_deltas_sits_out_also_after_a_restart(tmp_path: pathlib.Path) -> None:
    """After two refusals it gets no task, neither in the next attempt nor from a coordinator that was started anew."""
    path = tmp_path / "ledger.sqlite"
    scene = Scene(path, attempts=9)
    scene.hello("a", "b")
    assert scene.given() == ["a", "b"]
    assert not any(isinstance(i, SitOut) for i in scene.said)
    pass_round(scene)
    assert scene.given() == ["a", "b"]
    assert [i.spell for i in scene.said if isinstance(i, SitOut)] == [Spell("b", 1, 4)]
    pass_round(scene)
    assert scene.given() == ["a"]
    scene.hello("b")
    assert scene.given() == ["a"]
    scene.ledger.close()
    again = Scene(path, scene.now_s, attempts=9)
    again.hello("a", "b")
    assert again.given() == ["a"]
    pass_round(again)
    assert again.rounds.attempt == 4
    assert again.given() == ["a"]
    again.ledger.close()


def test_a_fleet_in_quarantine_gives_up_with_a_line(tmp_path: pathlib.Path) -> None:
    """Where nobody is left, the run ends after its attempts and says why; nothing was aggregated."""
    scene = Scene(tmp_path / "ledger.sqlite", devices=1, attempts=4)
    scene.hello("b")
    for _ in range(8):
        scene.now_s += REPEAT_S + 1
        scene.tell(Tick())
    assert scene.rounds.state is State.GAVE_UP
    assert not any(isinstance(i, AggregateRound) for i in scene.said)
    why = [i.why for i in scene.said if isinstance(i, (RepeatRound, GiveUp))]
    assert "1 are in quarantine" in why[-1]
    scene.ledger.close()
