"""From an instruction to the ledger: what has to be on disk before the instruction is carried out."""

from __future__ import annotations

from coordinator.events import (
    CancelTask,
    GiveTask,
    Instruction,
    OpenRound,
    RecordDecision,
    RecordDecline,
    RecordFailure,
    RecordMasking,
    RecordVerdict,
    RepeatRound,
)
from coordinator.ledger import Ledger


def write_down(ledger: Ledger, instruction: Instruction) -> None:
    """Write what `instruction` promises; one that promises nothing writes nothing."""
    if isinstance(instruction, RecordDecision):
        ledger.decision(instruction.round, instruction.attempt, instruction.decided)
    elif isinstance(instruction, OpenRound):
        ledger.open_round(instruction.round, instruction.attempt, instruction.present, instruction.drawn)
    elif isinstance(instruction, GiveTask):
        given = (instruction.device, instruction.choice, instruction.attempt, instruction.task, instruction.words)
        ledger.give_task(*given)
    elif isinstance(instruction, CancelTask):
        ledger.cancel_task(instruction.device, instruction.task_id, instruction.answer)
    elif isinstance(instruction, RecordDecline):
        ledger.decline(instruction.message, instruction.answer)
    elif isinstance(instruction, RecordFailure):
        ledger.failure(instruction.message, instruction.budget_bytes, instruction.answer)
    elif isinstance(instruction, RecordVerdict):
        ledger.verdict(instruction.verdict)
    elif isinstance(instruction, RecordMasking):
        ledger.masking(instruction.round, instruction.attempt, instruction.fact)
    elif isinstance(instruction, RepeatRound):
        ledger.repeat_round(instruction.round, instruction.attempt, instruction.why)
