"""Who does the step, and their measurements in turn: each is a process of its own."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from benchmarks import machine
from edge_sdk.engine.plan import Plan
from edge_sdk.errors import EdgeError
from edge_sdk.probing import probe_steps

Run = dict[str, Any]  # `peak_bytes` and `step_ms` at least


@dataclass(frozen=True, slots=True)
class Peer:
    """A module of benchmarks.peers and its command line; `once` for those that are too slow for every turn."""

    name: str
    module: str
    arguments: tuple[str, ...]
    once: bool = False

    def run(self) -> Run:
        """One measurement. Raises RuntimeError."""
        return machine.measured(f"benchmarks.peers.{self.module}", *self.arguments)

    def words(self) -> dict[str, Any]:
        """What its row says of it, for JSON."""
        return {"ours": False}


@dataclass(frozen=True, slots=True)
class Ours:
    """A plan on a level; `kinds` are the names under which the plan was chosen, `gradient_error` what it costs."""

    level: str
    kinds: tuple[str, ...]
    manifest: pathlib.Path
    plan: Plan
    shape: tuple[int, int]  # rows and tokens
    steps: int
    threads: int
    gradient_error: float = 0.0

    @property
    def name(self) -> str:
        """Unique within a scene."""
        return f"{self.level} {', '.join(self.kinds)}"

    def run(self) -> Run:
        """One measurement. Raises ArtifactError."""
        batch, tokens = self.shape
        return probe_steps(self.manifest, self.plan, tokens, batch, self.steps, self.threads)

    def words(self) -> dict[str, Any]:
        """What its row says of it, for JSON."""
        words = {"ours": True, "level": self.level, "kinds": list(self.kinds), "plan": dataclasses.asdict(self.plan)}
        return words | ({"gradient_error": self.gradient_error} if self.gradient_error else {})


@dataclass(slots=True)
class Rows:
    """What was measured so far: `runs` by contender, in the order of their first turn, and what its row says of it."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    words: dict[str, dict[str, Any]] = field(default_factory=dict)

    def turn(self, everyone: Sequence[Peer | Ours], console: Console, title: str) -> None:
        """Measure each once, but for who failed before."""
        for one in everyone:
            if "failed" in self.words.get(one.name, {}):
                continue
            found = self.runs.setdefault(one.name, [])
            self.words.setdefault(one.name, one.words())
            with console.status(f"{title}: {one.name}"):
                try:
                    found.append(one.run())
                except (RuntimeError, EdgeError) as error:
                    found.clear()
                    self.words[one.name]["failed"] = str(error)

    def median(self, name: str, key: str) -> float:
        """The median over the turns. Raises LookupError where there is nothing."""
        if not self.runs[name]:
            msg = f"{name} was not measured"
            raise LookupError(msg)
        return float(statistics.median(run[key] for run in self.runs[name]))

    def plain(self) -> list[dict[str, Any]]:
        """A row a contender: name, what it is, medians and the runs themselves."""
        rows = []
        for name, runs in self.runs.items():
            row: dict[str, Any] = {"name": name, **self.words[name], "runs": [_short(run) for run in runs]}
            keys = [key for key in ("peak_bytes", "step_peak_bytes", "step_ms") if runs and key in runs[0]]
            rows.append(row | {key: round(self.median(name, key), 1) for key in keys})
        return rows


def in_turns(
    peers: Sequence[Peer],
    ours: Callable[[Rows], Sequence[Ours]],
    turns: int,
    console: Console,
    title: str,
) -> Rows:
    """Everyone's measurements, alternately; `ours` chooses plans by what the peers took in their first turn."""
    rows = Rows()
    rows.turn(peers, console, f"{title}, turn 1 of {turns}")
    chosen = ours(rows)
    rows.turn(chosen, console, f"{title}, turn 1 of {turns}")
    for turn in range(2, turns + 1):
        rows.turn([*(peer for peer in peers if not peer.once), *chosen], console, f"{title}, turn {turn} of {turns}")
    return rows


def _short(run: Mapping[str, Any]) -> Run:
    kept = ("peak_bytes", "step_peak_bytes", "step_ms", "first_loss", "loss", "threads", "version", "runtime")
    return {key: run[key] for key in kept if key in run}
