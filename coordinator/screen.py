"""What the person at the coordinator sees: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.events import TaskState
from coordinator.history import History, ResultRow
from coordinator.report import EMULATOR, FULL, Check
from coordinator.rounds import Rounds
from edge_sdk.wire.messages import DeclineReason

NONE = "-"
LOG_WIDTH = 140  # of tables where there is no terminal


class Screen:
    """Lines, and on a terminal a table below them that is kept up to date."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on standard output, or on the given console."""
        width = None if sys.stdout.isatty() else LOG_WIDTH
        self.console = console or Console(highlight=False, soft_wrap=True, width=width)
        self._live = (
            Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        )

    def __enter__(self) -> Screen:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        """Begin to show."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()

    def line(self, text: str, style: str | None = None) -> None:
        """Something happened, now. What devices say of themselves is shown, never obeyed by the terminal."""
        shown = "".join(c if c.isprintable() else " " for c in text)
        self.console.print(Text.assemble((time.strftime("%H:%M:%S "), "dim"), (shown, style or "")))

    def board(self, make: Callable[[], Table]) -> None:
        """Where things stand; on what is no terminal the table is not even made."""
        if self._live:
            self._live.update(make(), refresh=True)

    def table(self, table: Table) -> None:
        """Something to keep."""
        self.console.print(table)


def board(rounds: Rounds[Any], now_s: float) -> Table:
    """The round as it stands, with what each device said last: one line per device."""
    title = f"round {rounds.round}, {rounds.state.value}"
    if rounds.attempt > 1:
        title += f", attempt {rounds.attempt}"
    if math.isfinite(rounds.deadline_at_s):
        title += f", {max(0, rounds.deadline_at_s - now_s):.0f} s left"
    table = Table(title=title, title_justify="left")
    for heading in ("device", "budget MB", "level", "state", "step", "loss"):
        table.add_column(heading, justify="left" if heading in {"device", "level", "state"} else "right")
    latest = {entry.device: entry for entry in rounds.entries()}
    for device in rounds.fleet:
        name = device.hello.device
        entry = latest.get(name)
        said = entry.progress if entry else None
        working = said is not None and entry is not None and entry.state is TaskState.OFFERED
        state = NONE if entry is None else "training" if working else entry.state.value
        table.add_row(
            name,
            f"{device.hello.budget_bytes / 1e6:.0f}",
            entry.choice.level if entry else NONE,
            state if device.online else f"{state} (offline)",
            f"{said.step}/{said.steps}" if said else NONE,
            f"{said.loss:.3f}" if said else NONE,
        )
    return table


def result_table(history: History) -> Table:
    """Every round and device: what was promised, measured, sent and learned; and who declined."""
    table = Table(title="Rounds", title_justify="left")
    headings = ("round", "device", "level", "budget MB", "predicted", "peak MB", "down MB", "up MB", "steps", "loss")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"device", "level", "loss"} else "right")
    rows: list[tuple[int, str, tuple[str, ...]]] = []
    for a in history.answers:
        has = f" of {a.budget_bytes / 1e6:.0f}" if a.reason == DeclineReason.NO_SPACE.value else ""
        wanted = f", {a.bytes / 1e6:.0f}{has} MB" if a.bytes else ""
        budget = NONE if has or not a.budget_bytes else f"{a.budget_bytes / 1e6:.0f}"
        rows.append((a.round, a.device, (a.level, budget, *([NONE] * 5), f"{a.kind}: {a.reason}{wanted}")))
    for r in history.results:
        report = r.report
        sizes = (report.budget_bytes, report.predicted_bytes, report.peak_bytes)
        traffic = (report.down_bytes, report.up_bytes)
        loss = f"{report.loss_before:.3f} -> {report.loss_after:.3f}" + _counted(r)
        cells = (
            r.level,
            *(f"{s / 1e6:.0f}" for s in sizes),
            *(f"{t / 1e6:.1f}" for t in traffic),
            str(report.steps),
            loss,
        )
        rows.append((r.round, r.device, cells))
    for round_, device, cells in sorted(rows, key=lambda row: row[:2]):
        table.add_row(str(round_), device, *cells)
    return table


def _counted(row: ResultRow) -> str:
    if row.version is None:
        return " (not used)"
    return f" ({row.staleness} late)" * (row.staleness > 0)


def evaluation_table(history: History, level: str) -> Table:
    """Held-out losses by version; version 0 is what the first round starts from."""
    table = Table(title="Held-out loss", title_justify="left")
    for heading in ("adapter", "full model", f"emulator ({level})", "accuracy, full", "truncation"):
        table.add_column(heading, justify="right")
    for adapter in history.adapters:
        rows = history.evaluated(adapter.version)
        full, emulator = rows.get(FULL), rows.get(EMULATOR)
        table.add_row(
            f"round {adapter.version}" if adapter.version else "start",
            f"{full.loss:.4f}" if full else NONE,
            f"{emulator.loss:.4f}" if emulator else NONE,
            f"{full.accuracy:.3f}" if full and full.accuracy is not None else NONE,
            f"{adapter.truncation:.1%}" if adapter.version else NONE,
        )
    return table


def check_line(check: Check) -> tuple[str, str]:
    """A check as a line and its style."""
    return f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}", "green" if check.passed else "bold red"
