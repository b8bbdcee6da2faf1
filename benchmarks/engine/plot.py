"""Memory against time: what our plans are predicted to take, what they took, and what the peers took.

python -m benchmarks.engine.plot ENGINE.json OUT.png
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

SCENE = "smollm2-1x128"


def draw(scene: dict[str, Any], path: pathlib.Path) -> None:
    """A line a level, the frontier of its plans; points are measured plans, crosses peers. Both scales are logs."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(f"one training step: {scene['title']}")
    for level, points in scene["frontiers"].items():
        xs, ys = zip(*points, strict=True)
        (line,) = axes.step([x / 1e6 for x in xs], ys, where="post", label=f"{level}, predicted")
        mine = [row for row in scene["rows"] if row.get("level") == level and "step_ms" in row]
        for row in mine:
            _point(axes, row, ", ".join(row["kinds"]), "o", line.get_color(), "left")
    for row in scene["rows"]:
        if not row["ours"] and "step_ms" in row:
            _point(axes, row, row["name"], "X", "black", "right")
    axes.set(xscale="log", yscale="log", xlabel="peak memory of the process, MB", ylabel="step, ms")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter())
        axis.set_tick_params(which="both", labelsize="x-small")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _point(axes: Axes, row: dict[str, Any], name: str, marker: str, color: Any, side: str) -> None:  # noqa: ANN401 - matplotlib's
    place = (row["peak_bytes"] / 1e6, row["step_ms"])
    axes.plot(*place, marker=marker, color=color, linestyle="none")
    beside = (5 if side == "left" else -5, 5)
    axes.annotate(name, place, beside, textcoords="offset points", fontsize="x-small", color=color, ha=side)


def main() -> None:
    """Run the command line."""
    scenes = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))
    draw(scenes[SCENE], pathlib.Path(sys.argv[2]))


if __name__ == "__main__":
    main()
