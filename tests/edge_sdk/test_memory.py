"""Memory is read as the kernel counts it, and a bound on allocations holds."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.environment import training_environment
from edge_sdk.errors import ConfigError, OverBudget
from edge_sdk.memory import check_budget, parse_size, read_memory

MB = 10**6
ROOT = pathlib.Path(__file__).parents[2]


def run(script: str, *arguments: str) -> list[str]:
    """The words that a script prints in a process of its own, which has a worker's environment."""
    command, environment = [sys.executable, "-c", script, *arguments], training_environment(1)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256 * MB),
        ("256 mb", 256 * MB),
        (" 1.5GB ", 1500 * MB),
        ("1.5GiB", 3 << 29),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("12", 12),
        ("12B", 12),
        ("0MB", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    """MB is a million bytes, MiB is binary; blanks and case do not matter."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e3MB", "1,5GB", "1 2MB", "1TB", "1MBs", "nan", "inf", "0x10"])
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    """Nothing is guessed: the message shows how to write it."""
    with pytest.raises(ConfigError, match=r"^'.*' is no size; write it like 256MB or 1.5GB$"):
        parse_size(text)


@given(st.integers(0, 10**9))
def test_every_number_of_megabytes_is_exact(megabytes: int) -> None:
    """A whole number of megabytes is that many bytes: no rounding in between."""
    assert parse_size(f"{megabytes}MB") == megabytes * MB


def test_this_process_is_measured() -> None:
    """Anonymous memory is part of the resident, the resident at most its peak."""
    memory = read_memory()
    assert 0 < memory.anonymous_bytes <= memory.resident_bytes <= memory.peak_bytes
    assert memory.data_bytes > 0


def test_a_process_that_is_gone_cannot_be_measured(tmp_path: pathlib.Path) -> None:
    """Its status file is not there: an OSError, for whoever watches to expect."""
    with pytest.raises(OSError, match="status"):
        read_memory(tmp_path / "status")


PEAK = """
from edge_sdk.memory import read_memory, reset_peak
begin = read_memory().resident_bytes
big = b"x" * 50_000_000
print(read_memory().peak_bytes - begin)
del big
print(read_memory().peak_bytes - begin)
reset_peak()
print(read_memory().peak_bytes - begin)
"""


def test_the_peak_stays_until_it_is_reset() -> None:
    """What was allocated and freed again counts until the peak starts anew."""
    allocated, freed, again = map(int, run(PEAK))
    assert allocated == pytest.approx(50 * MB, abs=2 * MB)
    assert freed == pytest.approx(allocated, abs=MB)
    assert again < 5 * MB


BOUND = """
import sys
from edge_sdk.memory import bound_allocations, read_memory
bound_allocations(read_memory().resident_bytes + int(sys.argv[1]))
try:
    big = b"x" * int(sys.argv[2])
    print("granted", len(big))
except MemoryError:
    print("refused", len(b"x" * 1000))
"""


@pytest.mark.parametrize(
    ("more", "wanted", "answer"), [(40, 30, "granted"), (40, 60, "refused"), (150, 120, "granted")]
)
def test_allocations_beyond_the_budget_fail(more: int, wanted: int, answer: str) -> None:
    """A process with so much left gets what fits, and is refused what does not; it lives on, and smaller ones pass."""
    assert run(BOUND, str(more * MB), str(wanted * MB))[0] == answer


AGAIN = """
import mmap, sys
from edge_sdk.memory import bound_allocations, read_memory
budget = read_memory().resident_bytes + 140_000_000
bound_allocations(budget)
untouched = mmap.mmap(-1, 100_000_000, mmap.MAP_PRIVATE)

def asked():
    try:
        return "granted" if b"x" * int(sys.argv[1]) else ""
    except MemoryError:
        return "refused"

print(asked())
bound_allocations(budget)
print(asked())
for at in range(0, len(untouched), mmap.PAGESIZE):
    untouched[at] = 1
bound_allocations(budget)
print(asked())
"""


@pytest.mark.parametrize(
    ("wanted", "answers"),
    [
        (30, ["granted", "granted", "granted"]),
        (60, ["refused", "granted", "refused"]),
        (160, ["refused", "refused", "refused"]),
    ],
)
def test_what_was_promised_and_not_touched_is_room_again(wanted: int, answers: list[str]) -> None:
    """A bound that is set again counts what is resident: an arena's untouched pages are nobody's, touched they are."""
    assert run(AGAIN, str(wanted * MB)) == answers


ORT = """
import sys
import numpy as np
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.walk import Walk
from edge_sdk.memory import bound_allocations, read_memory
artifact = open_artifact(sys.argv[1])
walk = Walk(artifact, 1, Plan(64, 256), lambda: None)
adapter = artifact.initial_adapter()
walk.gradient(random_batch(artifact.manifest, 1, 8), adapter, 1.0)
bound_allocations(read_memory().resident_bytes + 20_000_000)
walk.gradient(random_batch(artifact.manifest, 1, 8), adapter, 1.0)
try:
    walk.gradient(random_batch(artifact.manifest, 64, 256), adapter, 1.0)
except MemoryError as error:
    print("refused")
walk.gradient(random_batch(artifact.manifest, 1, 8), adapter, 1.0)
print("alive")
"""


def test_the_runtimes_own_allocations_are_bound_too(tiny_artifact: pathlib.Path) -> None:
    """A step too large fails inside onnxruntime as a MemoryError, and the next one of a fitting size succeeds."""
    assert run(ORT, str(tiny_artifact)) == ["refused", "alive"]


def test_a_peak_over_the_budget_says_both_numbers() -> None:
    """The error carries what was measured, for the report; within the budget nothing is said."""
    check_budget(1 << 50)
    with pytest.raises(OverBudget, match=r"^\d+ MB resident, the budget is 1 MB$") as caught:
        check_budget(MB)
    assert caught.value.measured_bytes >= read_memory().resident_bytes // 2
    assert caught.value.budget_bytes == MB


FORGET = """
import sys
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.walk import Walk
from edge_sdk.memory import forget_code, read_memory

def file_bytes():
    memory = read_memory()
    return memory.resident_bytes - memory.anonymous_bytes

artifact = open_artifact(sys.argv[1])
walk, adapter = Walk(artifact, 1, Plan(4, 32), lambda: None), artifact.initial_adapter()
batch = random_batch(artifact.manifest, 4, 16)
before = walk.gradient(batch, adapter, 1.0)
loaded = file_bytes()
forget_code()
print(loaded - file_bytes())
after = walk.gradient(batch, adapter, 1.0)
print(loaded - file_bytes())
print(before.loss == after.loss, all((before.gradients[n] == after.gradients[n]).all() for n in before.gradients))
"""


def test_forgotten_code_is_not_resident_and_comes_back(tiny_artifact: pathlib.Path) -> None:
    """Megabytes of code are given back at once; what a step needs, less, is mapped again, and computes the same."""
    forgotten, again, *same = run(FORGET, str(tiny_artifact))
    assert int(forgotten) > 5 * MB
    assert 0 < int(again) < int(forgotten)
    assert same == ["True", "True"]
