"""A real fleet in which something goes wrong: broker, coordinator and two agents as processes, and an observer.

A run is over when every round is aggregated and every result has its receipt. Then `judged` compares what was heard on
the broker with the ledger, and the bytes of every blob that anybody stored with its name.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.reliability.observer import Heard, Observer
from coordinator.errors import LedgerError
from coordinator.history import History
from edge_sdk.wire.blobs import SHA256, blob_of_file
from tests.brokers import Amqtt, Mosquitto
from tests.integration.conftest import TOKENS, Processes, Tiny

ROUNDS: Final = 2
PATIENCE_S: Final = 180.0
LOOK_S: Final = 0.05
FLEET: Final = "test"
BROKERS: Final = {"mosquitto": Mosquitto, "amqtt": Amqtt}
TRAINING: Final = {"steps": 2, "batch": 2, "tokens": TOKENS, "learning_rate": 1e-3, "delta_codec": "fp16"}


class Unsurvived(Exception):  # noqa: N818 - what all this is there to find
    """The run did not complete; the message says where it stood."""


@dataclass(slots=True)
class Tally:
    """What a run came to. `complaints` are empty where everything was counted once and nothing is damaged."""

    complaints: list[str] = field(default_factory=list)
    offered: int = 0
    receipted: int = 0
    committed: int = 0
    aggregated: int = 0
    duplicated: int = 0
    lost: int = 0
    blobs: int = 0
    wrong_blobs: int = 0


class Fleet:
    """The processes of one run around `tiny`, their files in `folder`; what is started ends with `stack`.

    `rounds` are changes to the configuration's table of that name, `changes` to the others; `broker` is one of BROKERS.
    """

    def __init__(
        self,
        tiny: Tiny,
        folder: pathlib.Path,
        stack: contextlib.ExitStack,
        rounds: dict[str, Any] | None = None,
        *,
        broker: str = "mosquitto",
        **changes: Any,  # noqa: ANN401 - tables of a configuration
    ) -> None:
        """A broker and an observer; nobody else yet."""
        (folder / "broker").mkdir(parents=True)
        self.broker, self.folder = BROKERS[broker](folder / "broker"), folder
        self.broker.start()
        stack.callback(self.broker.kill)
        self.processes = Processes(folder, tiny, self.broker)
        stack.callback(self.processes.close)
        self.observer = Observer(self.broker.url, FLEET)
        stack.callback(self.observer.close)
        table = {"count": ROUNDS, "devices": 2, "quorum": 1, "deadline_s": 120.0, "wait_s": 60.0, **(rounds or {})}
        self._changes = {**tiny.changes, "training": TRAINING, "rounds": table, **changes}
        self.may_be_killed: set[str] = set()
        self._copy_artifact(tiny.artifact)

    def serve(self, crash: str = "") -> None:
        """Start the coordinator, or start it again."""
        self.processes.serve(crash, **self._changes)

    def history(self) -> History | None:
        """The ledger, if there is one yet."""
        try:
            return self.processes.history()
        except LedgerError:  # only just starting
            return None

    def has_open_task(self) -> bool:
        """Whether a device has a task now."""
        history = self.history()
        return history is not None and history.open_tasks > 0

    def is_complete(self) -> bool:
        """Whether every round is aggregated and every result has its receipt."""
        history = self.history()
        waiting = list(self.folder.glob("?-store/outbox/*.result"))
        return history is not None and history.done >= ROUNDS and not waiting

    def until(self, what: Callable[[], object], why: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for `what`. Raises Unsurvived when it takes too long, or when anybody ends who should not."""
        deadline_s = time.monotonic() + patience_s
        while not what():
            self._no_other_end()
            if time.monotonic() > deadline_s:
                msg = f"waited {patience_s:.0f} s in vain: {why}"
                raise Unsurvived(msg)
            time.sleep(LOOK_S)

    def judged(self) -> Tally:
        """What it came to, once it is complete."""
        tally = Tally()
        history, heard = self.processes.history(), self.observer.close()
        _count(tally, history, heard)
        damaged = list(self._damaged(tally))
        tally.wrong_blobs = len(damaged)
        if damaged:
            tally.complaints.append(f"not what their names promise: {damaged}")
        return tally

    def _copy_artifact(self, artifact: pathlib.Path) -> None:
        """Without the levels' manifests in its store: the coordinator that starts first puts them there."""
        folder = self.processes.out / "artifact"
        shutil.copytree(artifact, folder)
        for path in folder.glob("*.manifest"):
            (folder / "blobs" / blob_of_file(path).sha256).unlink(missing_ok=True)

    def _no_other_end(self) -> None:
        for name, process in self.processes.running.items():
            status = process.poll()
            killed = status == -signal.SIGKILL and name in self.may_be_killed
            if status not in {None, 0} and not killed:
                last = self.processes.log(name).strip().splitlines()[-1:]
                msg = f"{name} ended with {status}: {last}"
                raise Unsurvived(msg)

    def _damaged(self, tally: Tally) -> Iterator[str]:
        for path in self.folder.rglob("blobs/*"):
            if SHA256.fullmatch(path.name):
                tally.blobs += 1
                if blob_of_file(path).sha256 != path.name:
                    yield str(path.relative_to(self.folder))


def _count(tally: Tally, history: History, heard: Heard) -> None:
    """Compare the ledger with what was heard on the broker."""
    committed = [(row.round, row.attempt, row.device) for row in history.results]
    used = [row for row in history.results if row.version is not None]
    answered = heard.accepted | heard.refused
    tally.offered, tally.receipted = len(heard.offered), len(answered & heard.offered)
    tally.committed, tally.aggregated = len(committed), len(used)
    tally.duplicated = len(committed) - len(set(committed))
    tally.lost = len(heard.offered - answered) + max(0, len(heard.accepted) - len(committed))
    versions, said = [adapter.version for adapter in history.adapters], tally.complaints.append
    if versions != list(range(ROUNDS + 1)):
        said(f"adapter versions {versions}")
    if tally.duplicated:
        said("a device has two results in one attempt")
    if {row.round for row in used} != set(range(1, ROUNDS + 1)):
        said("a round has no result")
    if heard.offered - answered:
        said(f"offered and never receipted: {sorted(heard.offered - answered)}")
    if len(heard.accepted) != len(committed):
        said(f"{len(heard.accepted)} receipts say accepted, the ledger has {len(committed)} results")
