"""`fedpeat ladder` from beginning to end. Each step leaves in `out` what the next run of the command can skip.

rows/ split/ artifact/ measured/                 what was made on the way
ladder.json levels.toml profile.json ladder.png  written at the end, or not at all
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.builder import Artifact, build, check_initial, write_json
from coordinator.config import EvaluationConfig
from coordinator.controller import profile
from coordinator.errors import ConfigError
from coordinator.jobs import Jobs
from coordinator.ladder.costs import profile_of
from coordinator.ladder.measure import Bench, measure_all
from coordinator.ladder.publish import Ladder, as_plain, as_toml, ladder_table
from coordinator.ladder.request import configuration, describe, read_levels, without_levels
from coordinator.ladder.rows import kind_of, make_rows
from coordinator.screen import Screen
from edge_sdk.wire.blobs import written_atomically
from export.progress import Progress, narrated

MAX_ROWS = 20_000  # of the data that are read: rows are drawn from them


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. `tables` are those of a coordinator's configuration, all but its levels."""

    tables: Mapping[str, Any]
    data: pathlib.Path
    text_column: str
    label_column: str
    held_out_rows: int
    levels: pathlib.Path | None
    budget: str


def run(request: Request, screen: Screen) -> int:
    """Build, measure, write, show. Raises CoordinatorError, OSError; what is interrupted ends the process that runs."""
    asked = without_levels(request.tables)
    for what, path in (("model folder", asked.model.dir), ("data", request.data)):
        if not path.exists():
            msg = f"there is no {what} {path}"
            raise ConfigError(msg)
    given = None if request.levels is None else read_levels(request.levels)
    with contextlib.closing(Jobs()) as jobs, narrated() as report:
        report(Progress("look at the model", "", 0, 2))
        model = describe(asked.model, jobs)
        config = configuration(asked, model, given)
        data = EvaluationConfig(
            path=request.data,
            kind=kind_of(request.data, images=bool(model.image)),
            rows=MAX_ROWS,
            text_column=request.text_column,
            label_column=request.label_column,
        )
        config.out.mkdir(parents=True, exist_ok=True)
        report(Progress("rows", "", 1, 2))
        split = make_rows(config, data, model, request.held_out_rows, jobs)
        artifact = build(config, jobs, lambda line: report(Progress(**line)))
        check_initial(artifact)
        zero_shot, levels = measure_all(Bench(config, artifact, split, request.budget, jobs, report))
        ladder = Ladder(config, zero_shot, levels)
        _write(ladder, artifact, jobs)
    screen.table(ladder_table(ladder))
    screen.line(f"ladder.json, levels.toml, profile.json and ladder.png are in {config.out}")
    return 0


def _write(ladder: Ladder, artifact: Artifact, jobs: Jobs) -> None:
    out = ladder.config.out
    path, making = out / "ladder.json", out / ".ladder.png"
    write_json(path, as_plain(ladder))
    write_json(out / "profile.json", profile.as_plain(profile_of(ladder, artifact)))
    with written_atomically(out / "levels.toml") as file:
        file.write(as_toml(ladder).encode())
    jobs.process([sys.executable, "-m", "coordinator.ladder.plot", str(path), str(making)], lambda _line: None)
    making.rename(out / "ladder.png")
