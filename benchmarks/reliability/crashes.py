"""Kill a process of a real fleet at a label, start it again, and see whether anything was lost, doubled or damaged.

One of the processes is armed; an agent's workers are armed with it.
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import time
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.reliability.fleets import FLEET, PATIENCE_S, TRAINING, Fleet, Tally, Unsurvived
from benchmarks.reliability.imposter import Imposter
from benchmarks.reliability.misfortune import Misfortune
from benchmarks.reliability.proxy import FaultProxy
from benchmarks.reliability.scenes import Scene, scene_of
from edge_sdk.wire.crash_points import COORDINATOR, WORKER
from tests.integration.conftest import Tiny

DOWN_BYTES_S, UP_BYTES_S = 3e6, 2e5  # the artifact's largest file and a delta take some seconds at these
ROUNDS_OF: Final[dict[Scene, dict[str, Any]]] = {
    Scene.DECLINES: {"devices": 3},
    Scene.REFUSED: {"devices": 3},
    Scene.REPEATS: {"quorum": 2},
    Scene.SECURE: {"devices": 4, "participants": 4, "quorum": 3},
}
EXACT: Final = {name: value for name, value in TRAINING.items() if name != "delta_codec"}
SECURE: Final[dict[str, Any]] = {"secure": {"step_s": 120.0}, "checks": {"norm_factor": 0}, "training": EXACT}


@dataclass(slots=True)
class Case:
    """One kill and what came of it."""

    process: str
    label: str
    scene: Scene
    reached: bool = False
    survived: bool = False
    tally: Tally = field(default_factory=Tally)
    wall_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Killed there, survived it, and nothing is amiss."""
        return self.reached and self.survived and not self.tally.complaints


def run_case(process: str, label: str, tiny: Tiny, folder: pathlib.Path) -> Case:
    """Kill `process` at `label` in a fleet around `tiny`, whose files lie in `folder`."""
    case, began_s = Case(process, label, scene_of(label)), time.monotonic()
    with contextlib.ExitStack() as stack:
        one = _Kill(case, tiny, folder, stack)
        try:
            one.run()
            case.survived = True
            case.tally = one.fleet.judged()
            if case.scene is Scene.FINISHES and not one.has_checkpoint():
                case.tally.complaints.append("there is no checkpoint")
        except Unsurvived as error:
            case.tally.complaints.append(str(error))
        case.reached = one.mark.exists()
    case.wall_s = time.monotonic() - began_s
    return case


class _Kill:
    """One case, running."""

    def __init__(self, case: Case, tiny: Tiny, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
        changes: dict[str, Any] = {}
        if case.scene is Scene.EVALUATES:
            changes["evaluation"] = {"path": _held_out(folder), "rows": 2}
        elif case.scene is Scene.TRIES:
            changes["rollout"] = {"canary": 1, "tasks": 1, "levels": ["fp32"]}
        elif case.scene is Scene.SECURE:
            changes |= SECURE
        self.fleet = Fleet(tiny, folder, stack, ROUNDS_OF.get(case.scene), **changes)
        self._case, self._stack = case, stack
        self._armed = "coordinator" if case.process == COORDINATOR else "a"
        self.fleet.may_be_killed = {self._armed}
        self.mark = self.fleet.processes.mark(self._armed)
        self._line = self._slow_line() if case.scene is Scene.SLOW else ""

    def run(self) -> None:
        """Raises Unsurvived."""
        fleet, scene, label = self.fleet, self._case.scene, self._case.label
        at_coordinator = self._armed == "coordinator"
        fleet.serve(label if at_coordinator else "")
        others = "worker.trained" if scene in {Scene.FAILS, Scene.REPEATS} else ""
        fleet.processes.device("a", crash=others if at_coordinator else label, broker=self._line)
        fleet.processes.device("b")
        if scene is Scene.DECLINES:
            fleet.processes.device("c", "20MB")
        elif scene is Scene.SECURE:
            fleet.processes.device("c")
            fleet.processes.device("d")
        elif scene is Scene.REFUSED:
            imposter = Imposter(fleet.broker.url, FLEET, "z", fleet.folder / "z-identity", lambda _task: b"no delta")
            self._stack.callback(imposter.close)
        elif scene is Scene.STOPPED:
            fleet.until(fleet.has_open_task, "a task is open")
            fleet.processes.running["coordinator"].send_signal(signal.SIGINT)
        fleet.until(self.mark.exists, f"{label} is passed")
        self._start_again()
        fleet.until(fleet.is_complete, "every round is done and every result has its receipt")
        if scene in {Scene.FINISHES, Scene.EVALUATES}:
            ended = fleet.processes.running["coordinator"]
            fleet.until(lambda: ended.poll() is not None, "the coordinator is done")

    def has_checkpoint(self) -> bool:
        """Whether the adapter is in the full model."""
        return (self.fleet.processes.out / "checkpoint" / "adapter_model.safetensors").is_file()

    def _start_again(self) -> None:
        if self._case.process == WORKER:  # its agent goes on
            return
        processes = self.fleet.processes
        if (status := processes.running.pop(self._armed).wait(PATIENCE_S)) != -signal.SIGKILL:
            msg = f"{self._armed} ended with {status}, and not by the kill"
            raise Unsurvived(msg)
        if self._armed == "coordinator":
            self.fleet.serve()
        else:
            processes.device("a", broker=self._line)

    def _slow_line(self) -> str:
        down, up = Misfortune(bytes_s=DOWN_BYTES_S), Misfortune(bytes_s=UP_BYTES_S)
        return self._stack.enter_context(FaultProxy(self.fleet.broker.port, seed=0, up=up, down=down)).url


def _held_out(folder: pathlib.Path) -> str:
    texts = folder / "held-out"
    texts.mkdir(parents=True)
    (texts / "one.txt").write_text("What is held aside is measured. " * 40, encoding="utf-8")
    return str(texts)
