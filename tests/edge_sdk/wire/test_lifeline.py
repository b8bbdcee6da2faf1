"""Whatever becomes of the process that started it, a child of ours does not stay behind."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from edge_sdk.wire.lifeline import PARENT

CHILD = (
    "from edge_sdk.wire.lifeline import end_with_parent as e; e(); import time; print(1, flush=True); time.sleep(60)"
)
STARTER = """
import os, subprocess, sys
from edge_sdk.wire.lifeline import parent_environment
given = parent_environment() if sys.argv[2:] else {}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, **given}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
ROOT = pathlib.Path(__file__).parents[3]


def started(*words: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A starter and its child, which is under way."""
    command = [sys.executable, "-c", STARTER, CHILD, *words]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    if starter.stdout is None:
        raise AssertionError
    with starter.stdout as said:
        return starter, psutil.Process(int(said.readline()))


def is_gone(process: psutil.Process, patience_s: float) -> bool:
    """Whether it ended; where nobody collects orphans it stays as a zombie."""
    deadline_s = time.monotonic() + patience_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals) -> None:
    """Also when the parent had no chance to end it."""
    starter, child = started("ours")
    starter.send_signal(number)
    starter.wait()
    assert is_gone(child, 10)


def test_a_command_that_people_started_stays() -> None:
    """A shell that ends takes nothing with it that was meant to go on."""
    starter, child = started()
    starter.kill()
    starter.wait()
    assert not is_gone(child, 0.5)
    child.kill()


def test_a_parent_that_is_gone_already() -> None:
    """The child looks once it has asked: it does not wait for a death that has been."""
    nobody = {**os.environ, PARENT: "999999999"}
    assert (
        subprocess.run([sys.executable, "-c", CHILD], env=nobody, cwd=ROOT, check=False, timeout=20).returncode == 143
    )
