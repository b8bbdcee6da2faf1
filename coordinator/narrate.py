"""What an instruction means to the person at the coordinator: one line and its style, or nothing."""

from __future__ import annotations

from coordinator.events import (
    AggregateRound,
    CancelTask,
    Finish,
    GiveTask,
    GiveUp,
    Instruction,
    OpenRound,
    RecordDecline,
    RecordFailure,
    RecordMasking,
    RecordVerdict,
    RepeatRound,
    SayLiar,
    SitOut,
)
from coordinator.secure.steps import Begun, Called, Going, Joined
from edge_sdk.wire.messages import Hello


def rolled_back(hello: Hello, version: int, *, restored: bool) -> str:
    """What to do about a device that has taken a later offer of this coordinator's than any that it knows of."""
    what = f"{hello.device}: it has taken version {hello.heard_version} of our offers, here it is {version}"
    if restored:
        return f"{what}: going on from there"
    return f"{what}, and it takes no lower one: if this is a backup that is to go on, `fedpeat serve --restored`"


def narrate(instruction: Instruction) -> tuple[str, str] | None:
    """A line and its style."""
    if isinstance(instruction, OpenRound):
        again = f", attempt {instruction.attempt}" if instruction.attempt > 1 else ""
        present, drawn = instruction.present, instruction.drawn
        lot = f", {drawn} of {present} devices drawn" if drawn < present else ""
        return f"round {instruction.round} is open{again}{lot}", "bold"
    if isinstance(instruction, GiveTask):
        return f"{instruction.device}: round {instruction.task.round}, {instruction.words}", ""
    if isinstance(instruction, CancelTask):
        return f"{instruction.device}: task cancelled, {instruction.reason}", "yellow"
    if isinstance(instruction, RecordDecline):
        said = instruction.message
        needs = f", needs {said.needed_bytes / 1e6:.0f} MB, has {said.budget_bytes / 1e6:.0f} MB" * bool(
            said.needed_bytes
        )
        return f"{instruction.device}: declined {instruction.level}, {said.reason.value}{needs}", "yellow"
    if isinstance(instruction, RecordFailure):
        failed = instruction.message
        what = f"failed at {instruction.level}, {failed.reason.value}, peak {failed.peak_bytes / 1e6:.0f} MB"
        return f"{instruction.device}: {what}: {failed.detail}", "red"
    return _about_the_course(instruction)


def _about_the_course(instruction: Instruction) -> tuple[str, str] | None:
    if isinstance(instruction, RepeatRound):
        return f"round {instruction.round} came to nothing: {instruction.why}", "yellow"
    if isinstance(instruction, AggregateRound):
        return f"round {instruction.round} is closed with {len(instruction.task_ids)} deltas; aggregating", "bold"
    if isinstance(instruction, Finish):
        return "all rounds are done", "bold"
    if isinstance(instruction, GiveUp):
        return f"given up: {instruction.why}", "bold red"
    return _about_trust(instruction)


def _about_trust(instruction: Instruction) -> tuple[str, str] | None:
    if isinstance(instruction, SitOut):
        spell = instruction.spell
        return f"{spell.device}: too many deltas refused; gets no task until round {spell.last} is over", "bold red"
    if isinstance(instruction, RecordVerdict) and instruction.verdict.halted:
        verdict = instruction.verdict
        return f"level {verdict.level} is halted, and given to no device any more: {verdict.why}", "bold red"
    if isinstance(instruction, RecordVerdict):
        verdict = instruction.verdict
        return f"level {verdict.level} is open to all devices: {verdict.why}", "bold"
    return _about_masking(instruction)


def _about_masking(instruction: Instruction) -> tuple[str, str] | None:
    if isinstance(instruction, SayLiar):
        return f"{instruction.device}: what it says of the secure sum does not count: {instruction.why}", "red"
    fact = instruction.fact if isinstance(instruction, RecordMasking) else None
    if isinstance(fact, Joined):
        return f"{fact.device}: has trained, and waits for the secure sum", ""
    if isinstance(fact, Begun):
        most = max(map(len, fact.neighbours.values()))
        return f"secure sum of {len(fact.neighbours)} devices, each masked with {most} others", ""
    if isinstance(fact, Going):
        return f"secure sum: {len(fact.devices)} devices have dealt out their secrets, and mask", ""
    if isinstance(fact, Called):
        return f"secure sum: {len(fact.alive)} masked deltas are here; asking for the shares that open it", ""
    return None
