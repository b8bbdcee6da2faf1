"""What the person at the coordinator sees is ours, whatever devices say."""

from __future__ import annotations

import io

from rich.console import Console

from coordinator.config import Rule, TrainingConfig
from coordinator.course import RoundsConfig
from coordinator.events import HelloHeard, ProgressHeard
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level
from coordinator.rounds import Rounds
from coordinator.screen import Screen, board
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import TaskProgress
from tests.coordinator.samples import MB, make_hello


def shown(what: object) -> str:
    """What a terminal would get."""
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=120).print(what)
    return out.getvalue()


def test_a_line_is_one_line_and_moves_no_cursor() -> None:
    """A machine's name may hold escape sequences and line ends: they reach no terminal."""
    out = io.StringIO()
    Screen(Console(file=out)).line("pi: \x1b[2Jboard\nround 9 is \u202edone")
    assert out.getvalue().count("\n") == 1
    assert not {"\x1b", "\u202e"} & set(out.getvalue())


def test_the_board_shows_the_progress_of_the_task_at_hand_alone() -> None:
    """What a device said of an earlier task, or of one that it was never given, is not shown."""
    config, tasks = RoundsConfig(count=1, devices=1), TaskMaker("run", TrainingConfig(steps=3), Rule.FREEZE_A)
    plan = Plan(config, tasks, (Level("small", 100 * MB),), {"small": blob_of(b"small")})
    rounds = Rounds(plan, LargestThatFits(), Past(0, blob_of(b"adapter")), 0.0)
    rounds.handle(HelloHeard(make_hello("pi", budget_bytes=200 * MB)), 0.0)
    (entry,) = rounds.entries()
    for task_id, seen in (("another", False), (entry.task.task_id, True)):
        rounds.handle(ProgressHeard("pi", TaskProgress(task_id, 2, 3, 1.2345)), 0.0)
        text = shown(board(rounds, 1.0))
        assert ("2/3" in text, "1.234" in text, "training" in text) == (seen, seen, seen)
