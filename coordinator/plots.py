"""The curves of a run, drawn by a process of its own, since matplotlib is heavy.

python -m coordinator.plots REPORT.json OUT.png
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edge_sdk.wire.lifeline import end_with_parent


def draw(report: dict[str, Any], path: pathlib.Path) -> None:
    """Held-out losses by adapter version on the left, each device's own losses by round on the right."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{report['name']}: {report['rule']}")
    _held_out(left, report["evaluations"])
    _devices(right, report["rounds"])
    figure.savefig(path, dpi=120)


def _held_out(axes: Axes, evaluations: list[dict[str, Any]]) -> None:
    for kind, label in (("full_loss", "plugged into the full model"), ("emulator_loss", "on the emulator")):
        points = [(e["version"], e[kind]) for e in evaluations if e[kind] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(title="held-out loss", xlabel="rounds aggregated", ylabel="nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend()


def _devices(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    done = [(r["round"], t) for r in rounds if r["state"] == "aggregated" for t in r["tasks"] if t["outcome"] == "done"]
    for device in sorted({task["device"] for _, task in done}):
        points = [(n, t) for n, t in done if t["device"] == device]
        xs = [x for n, _ in points for x in (n - 1, n)]
        ys = [y for _, t in points for y in (t["loss_before"], t["loss_after"])]
        axes.plot(xs, ys, marker=".", label=device)
    axes.set(title="each device's own data, before and after its round", xlabel="round", ylabel="nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend(fontsize="small")


def main() -> None:
    """Run the command line."""
    end_with_parent()
    report = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))
    draw(report, pathlib.Path(sys.argv[2]))


if __name__ == "__main__":
    main()
