"""Every crash point of every process, each in a fleet of its own, a few fleets at a time."""

from __future__ import annotations

import concurrent.futures
import pathlib
import shutil
from collections.abc import Callable, Sequence

from benchmarks.reliability.crashes import Case, run_case
from benchmarks.reliability.scenes import CHANGES
from tests.integration.conftest import Tiny, built
from tests.models import tiny_model

# One of each kind of step, for a quick look: n of them are swept in minutes, all of them in a quarter of an hour.
QUICK = (
    ("agent", "chunk.written"),
    ("agent", "journal.renamed"),
    ("agent", "install.renamed"),
    ("agent", "result-kept.synced"),
    ("agent", "result.offered"),
    ("agent", "residual-used.renamed"),
    ("agent", "receipt.record-gone"),
    ("worker", "worker-delta.renamed"),
    ("worker", "worker.said"),
    ("coordinator", "journal.durable"),
    ("coordinator", "install.renamed"),
    ("coordinator", "ledger.give-task.uncommitted"),
    ("coordinator", "ledger.commit-result.uncommitted"),
    ("coordinator", "ledger.commit-result.committed"),
    ("coordinator", "receipt.sent"),
    ("coordinator", "adapter.renamed"),
    ("coordinator", "ledger.commit-adapter.uncommitted"),
    ("coordinator", "ledger.commit-adapter.committed"),
    ("coordinator", "checkpoint.removed"),
)


def swept_artifact(folder: pathlib.Path) -> Tiny:
    """The model that is swept: its files take a slow line some seconds, its deltas are of more than one chunk."""
    sizes = {"vocab_size": 15_000, "hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    return built(folder, tiny_model("llama", folder / "model", **sizes), **CHANGES)


def sweep(
    cases: Sequence[tuple[str, str]],
    tiny: Tiny,
    folder: pathlib.Path,
    jobs: int,
    say: Callable[[Case], None],
) -> list[Case]:
    """Run the cases, `jobs` at a time; files of those that passed are removed. `say` hears of each as it ends."""

    def one(number: int, process: str, label: str) -> Case:
        here = folder / f"{number}-{process}-{label}"
        case = run_case(process, label, tiny, here)
        if case.passed:
            shutil.rmtree(here)
        say(case)
        return case

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(one, number, *case) for number, case in enumerate(cases)]
        return [future.result() for future in running]
