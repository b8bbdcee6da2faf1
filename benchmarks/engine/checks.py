"""The published numbers: what was measured, and what it must not be above."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Check:
    """A number and the largest that it may be; `measured` is None where a part of it could not be measured."""

    name: str
    measured: float | None
    bound: float

    @property
    def held(self) -> bool:
        """Whether it was measured, and is not above its bound."""
        return self.measured is not None and self.measured <= self.bound

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "measured": self.measured, "bound": self.bound, "held": self.held}


def check(name: str, bound: float, measure: Callable[[], float]) -> Check:
    """The check of a number that `measure` makes of rows; LookupError there means that one of them is missing."""
    try:
        return Check(name, measure(), bound)
    except LookupError:
        return Check(name, None, bound)


def row(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The row of that name, as Rows.plain has it. Raises LookupError."""
    return next_of((one for one in rows if one["name"] == name), name)


def plan_row(rows: Iterable[Mapping[str, Any]], level: str, kind: str) -> Mapping[str, Any]:
    """The row of the plan that was chosen as `kind` on `level`. Raises LookupError."""
    return next_of((one for one in rows if one.get("level") == level and kind in one["kinds"]), f"{level} {kind}")


def next_of(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The first of the rows. Raises LookupError, which names what is missing."""
    for found in rows:
        return found
    msg = f"no row {name}"
    raise LookupError(msg)


def table(checks: Iterable[Check]) -> Table:
    """All checks, as the command shows them."""
    found = Table(title="What was promised", title_justify="left")
    found.add_column("number")
    for heading in ("measured", "bound", ""):
        found.add_column(heading, justify="right")
    for one in checks:
        measured = "nothing" if one.measured is None else f"{one.measured:.3g}"
        found.add_row(one.name, measured, f"{one.bound:.3g}", "held" if one.held else "[bold]MISSED[/bold]")
    return found
