"""A process that one of ours has started ends with it, however that one ends.

Whoever is ended by SIGKILL, or by the kernel out of memory, cannot end its children: a worker that goes on would hold
its budget beside the next one's. So the child asks Linux for a SIGTERM at its parent's death, see
PR_SET_PDEATHSIG in prctl(2). The kernel takes the thread that started the child for its parent: that thread has to
wait for the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PARENT: Final = "FEDPEAT_PARENT"
PR_SET_PDEATHSIG: Final = 1
TERMINATED: Final = 143


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


def exit_on_terminate() -> None:
    """Let SIGTERM end this process by SystemExit, so that its children are ended and what is half-written removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
