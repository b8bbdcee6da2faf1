"""The ladder, drawn by a process of its own, since matplotlib is heavy.

python -m coordinator.ladder.plot LADDER.json OUT.png
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge_sdk.wire.lifeline import end_with_parent

MB = 1e6


def draw(ladder: dict[str, Any], path: pathlib.Path) -> None:
    """Loss of the full model with each level's adapter, over the level's bytes and over the least memory it needs."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"{pathlib.Path(ladder['model']).name}, {ladder['training']['steps']} steps at each level")
    for axes, key, label in ((left, "size_bytes", "bytes of the level, MB"), (right, "needs_bytes", "least peak, MB")):
        _levels(axes, ladder, key)
        axes.set(xlabel=label, xlim=(0, None))
    left.set(ylabel="held-out loss of the full model with the adapter, nats")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _levels(axes: Axes, ladder: dict[str, Any], key: str) -> None:
    for name, style in (("zero_shot_loss", ":"), ("tuned_loss", "--")):
        label = "as it is" if name == "zero_shot_loss" else "tuned itself"
        axes.axhline(ladder[name], linestyle=style, color="grey", label=f"the full model {label}")
    chosen = [level for level in ladder["levels"] if level["name"] in ladder["ladder"]]
    others = [level for level in ladder["levels"] if level["name"] not in ladder["ladder"]]
    for levels, label, filled in ((chosen, "on the ladder", True), (others, "not worth having", False)):
        points = [(level[key] / MB, level["quality"]["plug_in"]) for level in levels]
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=label, fillstyle="full" if filled else "none")
        for level, point in zip(levels, points, strict=True):
            axes.annotate(level["name"], point, xytext=(5, 4), textcoords="offset points", fontsize="x-small")


def main() -> None:
    """Run the command line."""
    end_with_parent()
    draw(json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8")), pathlib.Path(sys.argv[2]))


if __name__ == "__main__":
    main()
