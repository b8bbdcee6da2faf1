"""Places where a process can be told to kill itself: how it is proven that a kill anywhere loses nothing.

    FEDPEAT_CRASH_AT=LABEL:K:FILE

in the environment of a process ends it by SIGKILL when it passes LABEL for the K-th time. FILE is made just before;
where it is already there nothing happens, so that a worker that is started again gets on. The variable is read when
this module is imported and nowhere else: no message, file or option can set it. Off, a point costs one comparison.

Three kinds of step are labelled, each with its moments:

    FILES          a file that appears whole: `.unsynced` written, `.synced` on the disk, `.renamed` under its name,
                   `.durable` when the name is on the disk too
    TRANSACTIONS   of the ledger: `.uncommitted` and `.committed`
    POINTS         one moment each

The tables name the processes that pass a step. A kill keeps what the kernel has not yet written; what a power cut adds,
only the order of the steps can answer for.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "FEDPEAT_CRASH_AT"
AGENT, WORKER, COORDINATOR = "agent", "worker", "coordinator"

FILE_MOMENTS: Final = ("unsynced", "synced", "renamed", "durable")
FILES: Final[dict[str, tuple[str, ...]]] = {
    "manifest": (AGENT, COORDINATOR),  # a retained one goes into the device's store, a level's into the artifact's
    "journal": (AGENT, COORDINATOR),  # of a blob on its way in
    "install": (AGENT, COORDINATOR),  # the blob, once it is whole
    "residual-kept": (AGENT,),
    "delta-kept": (AGENT,),
    "result-kept": (AGENT,),
    "sum-numbers": (AGENT,),
    "sum-record": (AGENT,),
    "residual-used": (AGENT,),
    "worker-residual": (WORKER,),
    "worker-delta": (WORKER,),
    "sum": (COORDINATOR,),
    "adapter": (COORDINATOR,),
    "moments": (COORDINATOR,),
    "broker-url": (COORDINATOR,),
    "report": (COORDINATOR,),
}

TRANSACTION_MOMENTS: Final = ("uncommitted", "committed")
TRANSACTIONS: Final = (
    "ledger.create",
    "ledger.begin",
    "ledger.hello",
    "ledger.decision",
    "ledger.open-round",
    "ledger.repeat-round",
    "ledger.give-task",
    "ledger.cancel-task",
    "ledger.decline",
    "ledger.failure",
    "ledger.masking",
    "ledger.commit-result",
    "ledger.refuse-result",
    "ledger.commit-adapter",
    "ledger.verdict",
    "ledger.evaluation",
    "ledger.traffic",
)

POINTS: Final[dict[str, tuple[str, ...]]] = {
    "chunk.written": (AGENT, COORDINATOR),
    "install.unclaimed": (AGENT, COORDINATOR),  # the journal is gone, too
    "result.offered": (AGENT,),
    "receipt.heard": (AGENT,),
    "receipt.record-gone": (AGENT,),
    "receipt.residual-gone": (AGENT,),
    "receipt.done": (AGENT,),
    "rows.made": (WORKER,),
    "rows.replaced": (WORKER,),
    "worker.trained": (WORKER,),
    "worker.said": (WORKER,),
    "manifests.published": (COORDINATOR,),
    "announcement.sent": (COORDINATOR,),
    "task.offered": (COORDINATOR,),
    "delta.judged": (COORDINATOR,),
    "receipt.sent": (COORDINATOR,),
    "aggregate.begun": (COORDINATOR,),
    "aggregate.made": (COORDINATOR,),
    "checkpoint.begun": (COORDINATOR,),
    "checkpoint.made": (COORDINATOR,),
    "checkpoint.removed": (COORDINATOR,),
    "checkpoint.renamed": (COORDINATOR,),
}


def labels() -> dict[str, tuple[str, ...]]:
    """Every label there is, and the processes that pass it."""
    found = {f"{step}.{moment}": who for step, who in FILES.items() for moment in FILE_MOMENTS}
    found |= {f"{step}.{moment}": (COORDINATOR,) for step in TRANSACTIONS for moment in TRANSACTION_MOMENTS}
    return found | POINTS


@dataclass(slots=True)
class _Armed:
    """The one label that counts in this process, and how often it is still passed unharmed."""

    label: str
    left: int
    mark: str

    def passed(self, label: str) -> None:
        if label != self.label:
            return
        self.left -= 1
        if self.left == 0:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def armed(value: str) -> _Armed | None:
    """What LABEL:K:FILE asks for; None for an empty one. Raises ValueError for one that asks for nothing there is."""
    if not value:
        return None
    label, times, mark = [*value.split(":", 2), "", ""][:3]
    if label not in labels() or not times.isdecimal() or int(times) < 1 or not mark:
        msg = f"{VARIABLE} is {value!r}; write LABEL:K:FILE, with a LABEL of edge_sdk.wire.crash_points"
        raise ValueError(msg)
    return _Armed(label, int(times), mark)


def _armed_by_environment() -> _Armed | None:
    try:
        return armed(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise SystemExit(str(error)) from error


_ARMED: Final = _armed_by_environment()


def crash_point(label: str) -> None:
    """The process passes `label`."""
    if _ARMED is not None:
        _ARMED.passed(label)


def crash_moment(step: str, moment: str) -> None:
    """The process is at `moment` of `step`; an empty step has no label."""
    if _ARMED is not None and step:
        _ARMED.passed(f"{step}.{moment}")
