"""How our processes end: those that people start when asked to, those that these start with whoever started them.

Whoever is ended by SIGKILL, or by the kernel out of memory, cannot end its children: a worker that goes on would hold
its budget beside the next one's. So the child asks Linux for a SIGTERM at its parent's death, see
PR_SET_PDEATHSIG in prctl(2). The kernel takes the thread that started the child for its parent: that thread has to
wait for the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

PARENT: Final = "FEDPEAT_PARENT"
PR_SET_PDEATHSIG: Final = 1
TERMINATED: Final = 143
END_S: Final = 5.0


def parent_environment() -> dict[str, str]:
    """What a child's environment needs to have: it may itself be a command that people start, and leave running."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """In the child, first of all: end when the parent does. Without effect where nobody of ours started it."""
    parent, libc = os.environ.pop(PARENT, ""), ctypes.CDLL(None)
    if not parent or not hasattr(libc, "prctl"):
        return
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it ended before we could ask
        sys.exit(TERMINATED)


def end_process(process: subprocess.Popen[Any]) -> None:
    """End a child and wait for it: with SIGTERM, and with SIGKILL where that does not help in `END_S`."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def exit_on_terminate() -> None:
    """Let SIGTERM end this process by SystemExit, so that its children are ended and what is half-written removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


@dataclass(slots=True)
class Stop:
    """The wish to stop: 0, or the number of the signal that asked for it."""

    signal: int = 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, within; a second one acts as it always does."""
    stop = Stop()
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
