"""From an instruction to the ledger: what has to be on disk before the instruction is carried out."""

from __future__ import annotations

from coordinator.events import (
    CancelTask,
    GiveTask,
    Instruction,
    OpenRound,
    RecordDecline,
    RecordFailure,
    RepeatRound,
)
from coordinator.ledger import Ledger


def write_down(ledger: Ledger, instruction: Instruction) -> None:
    """Write what `instruction` promises; one that promises nothing writes nothing."""
    if isinstance(instruction, OpenRound):
        ledger.open_round(instruction.round, instruction.attempt, instruction.present, instruction.drawn)
    elif isinstance(instruction, GiveTask):
        ledger.give_task(instruction.device, instruction.level, instruction.attempt, instruction.task)
    elif isinstance(instruction, CancelTask):
        ledger.cancel_task(instruction.device, instruction.task_id)
    elif isinstance(instruction, RecordDecline):
        ledger.decline(instruction.message)
    elif isinstance(instruction, RecordFailure):
        ledger.failure(instruction.message, instruction.budget_bytes)
    elif isinstance(instruction, RepeatRound):
        ledger.repeat_round(instruction.round, instruction.attempt, instruction.why)
