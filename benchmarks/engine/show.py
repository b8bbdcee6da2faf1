"""The tables of a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.engine.checks import row as row_of


def table(title: str, rows: Sequence[Mapping[str, Any]], base: str | None) -> Table:
    """A row a contender; ratios are to the row `base`, where there is one."""
    found = Table(title=title, title_justify="left")
    found.add_column("contender")
    headings = ("peak RSS", "predicted", f"x {base}", "step", "predicted", f"x {base}")
    shown = [n for n, heading in enumerate(headings) if base or not heading.startswith("x ")]
    for n in shown:
        found.add_column(headings[n], justify="right")
    found.add_column("plan")
    to = row_of(rows, base) if base else None
    for row in rows:
        if "failed" in row:
            found.add_row(row["name"], *("" for _ in shown), row["failed"])
            continue
        plan = row.get("plan", {})
        cells = (
            _megabytes(row["peak_bytes"]),
            _megabytes(plan.get("peak_bytes")),
            _times(row, to, "peak_bytes"),
            f"{row['step_ms']:.0f} ms",
            f"{plan['step_ms']:.0f} ms" if plan else "",
            _times(row, to, "step_ms"),
        )
        off = f", gradient off by {row['gradient_error']:.1%}" if "gradient_error" in row else ""
        found.add_row(row["name"], *(cells[n] for n in shown), said(plan) + off)
    return found


def storage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The steps from an empty page cache, and under a limit."""
    found = Table(title="Lean plans from an empty page cache, and within a cgroup of the budget", title_justify="left")
    found.add_column("level")
    for heading in ("limit", "read", "first step", "step", "predicted"):
        found.add_column(heading, justify="right")
    for row in rows:
        limit = _megabytes(row["limit_bytes"]) or "none"
        if "failed" in row:
            found.add_row(row["level"], limit, "", "", row["failed"], "")
            continue
        expected = row.get("predicted_ms", row["warm_predicted_ms"])
        read = f"{row['read_bytes_s'] / 1e6:.0f} MB/s"
        times = (f"{row[key]:.0f} ms" for key in ("first_ms", "step_ms"))
        found.add_row(row["level"], limit, read, *times, f"{expected:.0f} ms")
    return found


def products(alone: Mapping[str, float]) -> str:
    """What bounds every step."""
    ours, theirs = alone["onnxruntime_ms"], alone["torch_ms"]
    return f"an exact step's products alone: {ours:.0f} ms by onnxruntime, packed beforehand; {theirs:.0f} ms by torch"


def said(plan: Mapping[str, Any]) -> str:
    """A plan in few words."""
    if not plan:
        return ""
    kept = f", keeps {plan['kept_blocks']} at {plan['kept_bits']} bits" if plan["kept_blocks"] else ""
    rows = f"rows {plan['micro_batch']}, head {plan['head_rows']}"
    return f"{rows}{kept}, resident {plan['resident']}, state {plan['state_bits']} bits"


def _megabytes(size_bytes: float | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"


def _times(row: Mapping[str, Any], base: Mapping[str, Any] | None, key: str) -> str:
    return "" if base is None or key not in base else f"{row[key] / base[key]:.2f}"
