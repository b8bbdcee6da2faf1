"""This process's memory: measuring its peak, bounding it, and watching it.

Resident memory (RSS) is what a budget is about, and VmHWM its peak: anonymous pages and the file pages that are mapped
at the time. Linux only, as the boards are. https://docs.kernel.org/filesystems/proc.html, tables 1-2 and section 3.5.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import pathlib
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.errors import ConfigError, OverBudget

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
STATUS, MAPS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/maps")


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `256MB` is 256,000,000, `1.5GiB` is binary. Raises ConfigError."""
    found = SIZE.fullmatch(text)
    if not found or found[2].upper() not in UNITS:
        msg = f"{text!r} is no size; write it like 256MB or 1.5GB"
        raise ConfigError(msg)
    return int(float(found[1]) * UNITS[found[2].upper()])


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, now: resident, of that anonymous, the peak of resident, and writable private memory promised (VmData)."""

    resident_bytes: int
    anonymous_bytes: int
    peak_bytes: int
    data_bytes: int


def read_memory(status: pathlib.Path = STATUS) -> Memory:
    """The memory of the process whose status file this is. Raises OSError when the process is gone."""
    kilobytes = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", status.read_text(), re.MULTILINE)}
    return Memory(*(kilobytes.get(key, 0) * 1024 for key in ("VmRSS", "RssAnon", "VmHWM", "VmData")))


def reset_peak() -> None:
    """Let VmHWM start again from now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def forget_code() -> None:
    """Give the mapped pages of programs and libraries back: most of them ran only while something was loaded.

    What is needed again is mapped again, from the page cache. 11 MB less beside a loaded worker (measured).
    """
    libc = ctypes.CDLL(None)
    for line in MAPS.read_text().splitlines():
        addresses, rights, *_ = line.split()
        if rights == "r-xp" and "/" in line:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def bound_allocations(budget_bytes: int) -> None:
    """Make allocations fail, from now on, that would take this process's resident memory beyond the budget.

    RLIMIT_DATA counts writable private memory as promised, not as touched: thread stacks count whole, and so does what
    an arena has reserved. So what may be promised is what is promised now, and what is left of the budget beside all
    that is resident now, the libraries' code included; it is to be said again from time to time, as promises are kept
    or are not. RLIMIT_AS would count the mapped weights and is of no use.
    """
    memory = read_memory()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory.data_bytes + max(budget_bytes - memory.resident_bytes, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


@contextlib.contextmanager
def unbounded_allocations() -> Iterator[None]:
    """Lift the bound while something is loaded: what that promises, stacks of threads above all, is granted as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = read_memory().data_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        yield
    finally:
        if soft != hard:
            granted = soft + max(read_memory().data_bytes - before, 0)
            limit = granted if hard == resource.RLIM_INFINITY else min(granted, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def check_budget(budget_bytes: int) -> None:
    """Compare the peak with the budget. Raises OverBudget with the measured bytes."""
    measured = read_memory().peak_bytes
    if measured > budget_bytes:
        raise OverBudget(measured, budget_bytes)
