"""The ladder as plain data for `ladder.json`, as tables of a configuration for `levels.toml`, and as a table to read.

docs/ladder.md says what the fields of `ladder.json` are.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from coordinator.config import Config, LevelConfig, PublicConfig
from coordinator.ladder.rungs import Measured, gap_closed, worth_having
from coordinator.report import versions

FORMAT: Final = 1
MB: Final = 1e6
NONE: Final = "-"


@dataclass(frozen=True, slots=True)
class Ladder:
    """All that was measured: `levels` as they were asked for, the full model first; `zero_shot` is its untuned loss."""

    config: Config
    zero_shot: float
    levels: tuple[Measured, ...]

    @property
    def closed(self) -> dict[str, float]:
        """The share of the gap that each level closes."""
        tuned = self.levels[0].quality.plug_in
        return {one.name: gap_closed(self.zero_shot, tuned, one.quality.plug_in) for one in self.levels}

    @property
    def rungs(self) -> tuple[Measured, ...]:
        """Those worth having, smallest first."""
        return worth_having(self.levels, self.closed)

    def below(self, level: Measured) -> str:
        """The next smaller level on the ladder; empty for the lowest."""
        smaller = [one for one in self.rungs if one.size_bytes < level.size_bytes and one is not level]
        return smaller[-1].name if smaller else ""


def as_plain(ladder: Ladder) -> dict[str, Any]:
    """What `ladder.json` holds."""
    config, closed, rungs = ladder.config, ladder.closed, ladder.rungs
    return {
        "format": FORMAT,
        "model": str(config.model.dir),
        "task": config.model.task.value,
        "adapter": _plain(config.adapter),
        "training": _plain(config.training),
        "zero_shot_loss": ladder.zero_shot,
        "tuned_loss": ladder.levels[0].quality.plug_in,
        "ladder": [one.name for one in rungs],
        "levels": [
            {
                **dataclasses.asdict(one),
                "level": _keys(level),
                "below": ladder.below(one),
                "needs_bytes": one.needs_bytes,
                "gap_closed": closed[one.name],
            }
            for one, level in zip(ladder.levels, config.levels, strict=True)
        ],
        "versions": versions(),
    }


def as_toml(ladder: Ladder) -> str:
    """`[[levels]]` of the ladder, best first, for a coordinator's configuration; with [public] where one needs it.

    The share of the gap that a level closes is its quality; a level may do a little better than the model itself.
    """
    config, chosen, closed = ladder.config, {one.name for one in ladder.rungs}, ladder.closed
    sizes = {one.name: one.size_bytes for one in ladder.levels}
    levels = sorted((one for one in config.levels if one.name in chosen), key=lambda one: -sizes[one.name])
    rated = [dataclasses.replace(one, quality=round(min(max(closed[one.name], 0.0), 1.0), 4)) for one in levels]
    tables = [("[[levels]]", _keys(level)) for level in rated]
    if config.public is not None and any(level.needs_public for level in levels):
        public = dataclasses.replace(config.public, path=config.public.path.resolve())
        tables.append(("[public]", _keys(public)))
    return "\n".join(_table(heading, keys) for heading, keys in tables)


def ladder_table(ladder: Ladder) -> Table:
    """One row per level, largest first."""
    tuned = ladder.levels[0].quality.plug_in
    table = Table(title="Levels", title_justify="left")
    table.add_column("level", overflow="fold")
    headings = ("MB", "new MB", "needs MB", "peak MB", "step ms", "emulator", "plugged in", "gap closed", "ladder")
    for heading in headings:
        table.add_column(heading, justify="right")
    rungs, closed = {one.name for one in ladder.rungs}, ladder.closed
    for one in sorted(ladder.levels, key=lambda one: -one.size_bytes):
        below, quality = ladder.below(one), one.quality
        table.add_row(
            one.name,
            f"{one.size_bytes / MB:.1f} ({one.size_bytes / ladder.levels[0].size_bytes:.0%})",
            f"{one.new_bytes[below] / MB:.1f} ({one.new_bytes[below] / one.size_bytes:.0%})" if below else NONE,
            f"{one.needs_bytes / MB:.0f}",
            f"{one.tune.peak_bytes / MB:.0f}",
            f"{one.tune.step_ms:.0f}",
            f"{quality.emulator_before:.3f} -> {quality.emulator:.3f}",
            f"{quality.plug_in:.4f}",
            f"{closed[one.name]:.1%}",
            "yes" if one.name in rungs else NONE,
        )
    gap = f"the full model: {ladder.zero_shot:.4f} as it is, {tuned:.4f} tuned itself, which closes the gap"
    table.caption = f"{gap}; new MB: what who holds the next lower level of the ladder has to fetch"
    return table


def _keys(table: LevelConfig | PublicConfig) -> dict[str, Any]:
    """The fields that are not as they are by default."""
    found = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    defaults = {field.name: field.default for field in dataclasses.fields(table)}
    return {name: _value(value) for name, value in found.items() if value != defaults[name]}


def _table(heading: str, keys: Mapping[str, Any]) -> str:
    """JSON's texts, numbers and lists are TOML's, too."""
    return "".join(f"{line}\n" for line in (heading, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())))


def _plain(table: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    return {field.name: _value(getattr(table, field.name)) for field in dataclasses.fields(table)}


def _value(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value if isinstance(value, (int, float, str)) else str(value)
