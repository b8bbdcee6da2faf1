"""A memory limit that the kernel holds: a cgroup v2 group for each process of a task, where we may make groups.

May we? The group that this process is in has to be ours alone: with the memory controller on, writable, and nobody else
in it. systemd gives that to a service with `Delegate=memory`. A group with processes of its own cannot limit the groups
below it (the "no internal processes" rule), so the agent moves into the leaf `agent` first:

    home                 what was delegated
    ├── agent            this process
    └── task-xxxxxxxx    one process of a task and all that it starts, for as long as it runs; memory.max is the budget

Why a group beside a watch: docs/adr/0008. Version 1 is not used, only asked for its limits. https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import EdgeError

PROC: Final = pathlib.Path("/proc/self")
AGENT, TASK = "agent", "task-"
REMOVE_S: Final = 1.0  # for what was killed to leave its group
# A shell enters the group and then becomes the command: all that the command ever allocates is counted, and no code of
# ours runs between fork and exec, where another thread's locks may be held for ever.
ENTER: Final = ("/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"')


class NotDelegated(EdgeError):  # noqa: N818 - a finding, and no fault of anybody's
    """No group with a memory limit can be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """A group with a limit on its memory. Without `folder` there is none, and nothing is limited."""

    folder: pathlib.Path | None
    limit_bytes: int

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that does `command` in this group, from its first byte on."""
        return [*ENTER, str(self.folder / "cgroup.procs"), *command] if self.folder else list(command)

    def killed_at_bytes(self) -> int:
        """The group's peak if the kernel ended its processes at the limit, else 0. Raises OSError.

        A kill alone is not enough: the whole machine may have run out of memory, which is not the limit's doing.
        """
        if self.folder is None:
            return 0
        events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
        if "0" in {events["oom"], events["oom_kill"]}:
            return 0
        try:
            return int((self.folder / "memory.peak").read_text())
        except FileNotFoundError:  # before Linux 5.19; it was at the limit
            return self.limit_bytes


def own_group(proc: pathlib.Path = PROC) -> pathlib.Path:
    """The folder of the cgroup v2 group that a process is in. Raises NotDelegated, OSError."""
    found = re.search(r"^0::(/.*)$", (proc / "cgroup").read_text(), re.MULTILINE)
    for line in (proc / "mountinfo").read_text().splitlines() if found else ():
        mount, kind = (part.split() for part in line.split(" - ", 1))
        root, point = mount[3:5]
        if kind[0] == "cgroup2" and found:
            with contextlib.suppress(ValueError):  # another part of the hierarchy than ours is mounted there
                return pathlib.Path(point, pathlib.PurePosixPath(found[1]).relative_to(root))
    msg = "no cgroup v2 here"
    raise NotDelegated(msg)


def memory_group(proc: pathlib.Path = PROC) -> pathlib.Path:
    """The folder of version 1's memory group that a process is in. Raises NotDelegated, OSError.

    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    found = re.search(r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)$", (proc / "cgroup").read_text(), re.MULTILINE)
    for line in (proc / "mountinfo").read_text().splitlines() if found else ():
        mount, kind = (part.split() for part in line.split(" - ", 1))
        if found and kind[0] == "cgroup" and "memory" in kind[2].split(","):
            with contextlib.suppress(ValueError):  # another part of the hierarchy than ours is mounted there
                return pathlib.Path(mount[4], pathlib.PurePosixPath(found[1]).relative_to(mount[3]))
    msg = "version 1 of cgroups bounds no memory here"
    raise NotDelegated(msg)


def delegated_group(proc: pathlib.Path = PROC) -> pathlib.Path:
    """The group that is ours to divide. Looks, and changes nothing. Raises NotDelegated."""
    try:
        group = own_group(proc)
        home = group.parent if group.name == AGENT else group
        if "memory" not in (home / "cgroup.controllers").read_text().split():
            msg = f"no memory controller in {home}"
        elif not (home / "memory.max").exists():
            msg = f"{home} is the root of all groups"
        elif not all(os.access(home / name, os.W_OK) for name in (".", "cgroup.procs", "cgroup.subtree_control")):
            msg = f"{home} is not ours to divide"
        elif set((home / "cgroup.procs").read_text().split()) - {str(os.getpid())}:
            msg = f"other processes are in {home}"
        else:
            return home
    except OSError as error:
        msg = f"{error.filename}: {error.strerror}"
    raise NotDelegated(msg)


def claim(proc: pathlib.Path = PROC) -> pathlib.Path:
    """Take possession of what is delegated: `home`, ready for task groups. Raises NotDelegated."""
    home = delegated_group(proc)
    try:
        (home / AGENT).mkdir(exist_ok=True)
        (home / AGENT / "cgroup.procs").write_text(str(os.getpid()))
        (home / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:  # the kernel has the last word
        msg = f"{home} cannot be divided: {error.strerror}"
        raise NotDelegated(msg) from error
    return home


@contextlib.contextmanager
def task_group(home: pathlib.Path | None, limit_bytes: int) -> Iterator[TaskGroup]:
    """A group in `home` (None: no group) with this limit; what is left in it ends with it. Raises OSError.

    The page cache counts, too, but clean pages are given up before anything is killed. Without swap: it would turn a
    limit into a slow machine. A kill takes all of the group: half a task is none.
    """
    if home is None:
        yield TaskGroup(None, limit_bytes)
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix=TASK, dir=home))
    try:
        (folder / "memory.max").write_text(str(limit_bytes))
        (folder / "memory.oom.group").write_text("1")
        if (folder / "memory.swap.max").exists():  # not where the kernel has no swap
            (folder / "memory.swap.max").write_text("0")
        yield TaskGroup(folder, limit_bytes)
    finally:
        _remove(folder)


def in_task_group(limit_bytes: int, proc: pathlib.Path = PROC) -> bool:
    """Whether this process runs in a task group with this limit, which the kernel has rounded down to whole pages."""
    try:
        group = own_group(proc)
        limit = (group / "memory.max").read_text().strip()
    except (NotDelegated, OSError):
        return False
    return group.name.startswith(TASK) and limit.isdecimal() and int(limit) <= limit_bytes


def _remove(folder: pathlib.Path) -> None:
    """Remove a group, and before that end what still runs in it. An empty group that stays costs next to nothing."""
    with contextlib.suppress(OSError):  # before Linux 5.14; there the group stays until they end
        (folder / "cgroup.kill").write_text("1")
    deadline_s = time.monotonic() + REMOVE_S
    with contextlib.suppress(OSError):
        while "populated 1" in (folder / "cgroup.events").read_text() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        folder.rmdir()
