"""What a long command says while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Progress:
    """`stage` has begun, number `done` (from 0) of `of`; `level` is empty for what all levels share.

    The same stage and level again: it goes on, with another `detail`.
    """

    stage: str
    level: str
    done: int
    of: int
    detail: str = ""


Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Say nothing."""


@contextmanager
def narrated() -> Iterator[Report]:
    """On standard error: a line with its time for each stage that has ended and, on a terminal, the one that runs."""
    console = Console(stderr=True, highlight=False)
    now: Progress | None = None
    begin = time.monotonic()

    def end() -> None:
        if now is not None:
            what = f"{now.stage} {now.level}".strip()
            console.print(f"{now.done + 1:3}/{now.of} {what:32} {time.monotonic() - begin:6.1f} s")

    with console.status("starting") as status:

        def show(progress: Progress) -> None:
            nonlocal now, begin
            if now is None or (now.stage, now.level) != (progress.stage, progress.level):
                end()
                begin = time.monotonic()
            now = progress
            what = f"{progress.stage} {progress.level} {progress.detail}"
            status.update(f"{progress.done + 1}/{progress.of} {what}")

        yield show
        end()
