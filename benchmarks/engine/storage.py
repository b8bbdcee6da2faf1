"""The same plans where the page cache does not help: empty at first, and bounded with everything else by a cgroup."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.engine.models import Model
from edge_sdk.cgroup import ENTER, NotDelegated, claim, memory_group, task_group
from edge_sdk.engine.plan import Declined, Storage, choose_plan, predicted
from edge_sdk.environment import training_environment
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.manifest import Manifest

GROUP = "fedpeat-"


def measure(
    model: Model, manifests: Mapping[str, Manifest], shape: tuple[int, int], budget_bytes: int, steps: int, threads: int
) -> list[dict[str, Any]]:
    """Two rows for each level with a plan for the budget: from an empty page cache, without and with a limit."""
    rows = []
    for level, manifest in manifests.items():
        plan = choose_plan(manifest, *shape, budget_bytes)
        if isinstance(plan, Declined):
            continue
        batch, tokens = shape
        numbers = map(str, (tokens, batch, steps, threads))
        arguments = [str(model.level(level)), *numbers, json.dumps(dataclasses.asdict(plan))]
        command = [sys.executable, "-m", "benchmarks.engine.cold", *arguments]
        words = {"level": level, "plan": dataclasses.asdict(plan), "warm_predicted_ms": plan.step_ms}
        rows.append({**words, "limit_bytes": None, **_outcome(command, threads)})
        limited: dict[str, Any] = {**words, "limit_bytes": budget_bytes}
        try:
            with limited_command(command, budget_bytes) as entering:
                limited |= _outcome(entering, threads)
        except (NotDelegated, OSError) as error:
            limited |= {"failed": f"no memory controller to be had: {error}"}
        if "read_bytes_s" in limited:
            storage = Storage(limited["read_bytes_s"], max(budget_bytes - plan.peak_bytes, 0))
            limited["predicted_ms"] = predicted(manifest, *shape, plan, storage).step_ms
        rows.append(limited)
    return rows


def _outcome(command: Sequence[str], threads: int) -> dict[str, Any]:
    """What the process found, or how it ended."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=training_environment(threads))
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    return {"failed": f"ended with {done.returncode}: {last_line(done.stderr, 'no output')}"}


@contextlib.contextmanager
def limited_command(command: Sequence[str], limit_bytes: int) -> Iterator[list[str]]:
    """The command that does `command` in a group with a limit on its memory, v2 or else v1, which ends with the block.

    Raises NotDelegated, or OSError, where no such group can be made.
    """
    try:
        home = claim()
    except NotDelegated:
        with _first_version(limit_bytes) as folder:
            yield [*ENTER, str(folder / "cgroup.procs"), *command]
        return
    with task_group(home, limit_bytes) as group:
        yield group.command(command)


@contextlib.contextmanager
def _first_version(limit_bytes: int) -> Iterator[pathlib.Path]:
    """A group of version 1 below our own, so that whatever bounds us bounds it too."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=GROUP, dir=memory_group()))
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield folder
    finally:
        folder.rmdir()
