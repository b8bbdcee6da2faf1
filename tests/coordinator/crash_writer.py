"""A process for the ledger's crash test: plays rounds against a ledger until it is killed.

`python -m tests.coordinator.crash_writer LEDGER` prints one line after each thing that was promised, `receipt TASK`
or `adapter VERSION`: whatever was printed must be in the ledger, whenever the kill came.
"""

from __future__ import annotations

import pathlib
import sys

from coordinator.answers import finished
from coordinator.config import Rule, TrainingConfig
from coordinator.course import RoundsConfig
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    Event,
    FetchDelta,
    GiveTask,
    HelloHeard,
    Instruction,
    OfferAgain,
    ResultCommitted,
    ResultHeard,
    SendReceipt,
)
from coordinator.ledger import Ledger
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level
from coordinator.rounds import Rounds
from coordinator.scribe import write_down
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import ResultOffer
from tests.coordinator.samples import MB, make_hello, make_report

DEVICES = ("a", "b", "c")


def plan(ledger: Ledger) -> Plan:
    """Many rounds of three devices."""
    rounds = RoundsConfig(count=10_000, devices=len(DEVICES), deadline_s=1000)
    tasks = TaskMaker(ledger.run, TrainingConfig(steps=1), Rule.LORA_SVD)
    return Plan(rounds, tasks, (Level("large", MB),), {"large": blob_of(b"large")})


def answer(ledger: Ledger, instruction: Instruction) -> list[Event]:
    """What devices that always deliver, and a coordinator that always commits, say to an instruction."""
    if isinstance(instruction, (GiveTask, OfferAgain)):
        offer = ResultOffer(instruction.task.task_id, blob_of(instruction.task.task_id.encode()), make_report())
        return [ResultHeard(instruction.device, offer)]
    if isinstance(instruction, FetchDelta):
        task_id = instruction.task.task_id
        answer = finished(instruction.answer, 5, instruction.offered_s, 0.0)
        ledger.commit_result(task_id, instruction.delta, 0.1, instruction.report, answer)
        return [ResultCommitted(task_id, answer)]
    if isinstance(instruction, AggregateRound):
        blobs = ledger.deltas(instruction.task_ids)
        adapter = blob_of(b"".join(blob.sha256.encode() for blob, _ in blobs))
        ledger.commit_adapter(instruction, adapter, 0.0)
        print(f"adapter {instruction.round}", flush=True)  # noqa: T201 - what the test reads
        return [AdapterReady(instruction.round, adapter)]
    if isinstance(instruction, SendReceipt) and instruction.receipt.accepted:
        print(f"receipt {instruction.receipt.task_id}", flush=True)  # noqa: T201 - what the test reads
    return []


def main() -> None:
    """Play until killed."""
    with Ledger(pathlib.Path(sys.argv[1]), "crash", "digest") as ledger:
        ledger.begin(blob_of(b"adapter 0"))
        past = ledger.past()
        assert isinstance(past, Past)
        rounds = Rounds(plan(ledger), LargestThatFits(), past, 0.0)
        events: list[Event] = [HelloHeard(make_hello(device)) for device in DEVICES]
        while events:
            for instruction in rounds.handle(events.pop(0), 0.0):
                write_down(ledger, instruction)
                events += answer(ledger, instruction)


if __name__ == "__main__":
    main()
