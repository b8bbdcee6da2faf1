"""What is said of a storage is true of it: a speed from the medium, and no more cache than limits leave."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import pytest

from edge_sdk import storage
from edge_sdk.cgroup import NotDelegated, memory_group
from edge_sdk.engine.plan import FAST_STORAGE, Storage
from edge_sdk.order import MAX_ORDER_BYTES, WorkerOrder
from edge_sdk.wire import codec
from edge_sdk.wire.errors import DecodeError
from tests.edge_sdk.orders import make_order

KB, MB = 1024, 10**6


def test_a_medium_has_a_speed(tmp_path: pathlib.Path) -> None:
    """Of a file that was just written, too: its pages are dropped first, and its bytes stay."""
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 3_000_001)
    assert 0 < storage.read_bytes_s(path) < math.inf
    assert path.read_bytes() == b"x" * 3_000_001


def test_an_empty_file_has_none(tmp_path: pathlib.Path) -> None:
    """Nothing is read, nothing is claimed."""
    (tmp_path / "blob").touch()
    with pytest.raises(storage.NotMeasured, match="blob is empty"):
        storage.read_bytes_s(tmp_path / "blob")


def test_the_cache_is_looked_at(tmp_path: pathlib.Path) -> None:
    """A file that was read is in it, one that was forgotten is not, unless the file system itself is memory."""
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 3_000_000)
    assert storage._cached(path, 3_000_000)
    storage.forget(path)
    if storage._cached(path, 3_000_000):
        pytest.skip("this file system keeps everything in memory")


def proc_of(folder: pathlib.Path, cgroup: str, mounts: str) -> pathlib.Path:
    """A /proc with 1,000 MB available, and this membership."""
    (folder / "self").mkdir()
    (folder / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {1000 * MB // KB} kB\n")
    (folder / "self/cgroup").write_text(cgroup)
    (folder / "self/mountinfo").write_text(mounts)
    return folder


def test_what_is_available_is_shared_with_the_budget(tmp_path: pathlib.Path) -> None:
    """Where no group has a limit; a budget that takes everything leaves nothing."""
    proc = proc_of(tmp_path, "0::/\n", "")
    assert storage.cache_bytes(300 * MB, proc) == 1000 * MB // KB * KB - 300 * MB
    assert storage.cache_bytes(2000 * MB, proc) == 0


def test_the_tightest_group_decides(tmp_path: pathlib.Path) -> None:
    """Ours or one above it; what it holds of files can be given up, shared memory cannot."""
    outer, inner = tmp_path / "cg/outer", tmp_path / "cg/outer/inner"
    inner.mkdir(parents=True)
    for folder, limit in ((outer, str(500 * MB)), (inner, "max")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(str(200 * MB))
        (folder / "memory.stat").write_text(f"anon {90 * MB}\nfile {100 * MB}\nshmem {10 * MB}\n")
    proc = proc_of(tmp_path, "0::/outer/inner\n", f"32 1 0:31 / {tmp_path}/cg rw - cgroup2 cgroup2 rw\n")
    assert storage.cache_bytes(150 * MB, proc) == (500 - 200 + 100 - 10 - 150) * MB


def test_the_first_versions_limits_count(tmp_path: pathlib.Path) -> None:
    """Version 1 names the same numbers otherwise."""
    group = tmp_path / "cg/box"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(400 * MB))
    (group / "memory.usage_in_bytes").write_text(str(100 * MB))
    (group / "memory.stat").write_text(f"cache 0\ntotal_cache {50 * MB}\ntotal_shmem 0\n")
    proc = proc_of(tmp_path, "4:memory:/box\n", f"31 1 0:30 / {tmp_path}/cg rw - cgroup cgroup rw,memory\n")
    assert storage.cache_bytes(100 * MB, proc) == 250 * MB


def test_the_first_versions_group_is_found_where_it_is_mounted(tmp_path: pathlib.Path) -> None:
    """Whatever else the hierarchy controls; without a memory controller the answer is a reason."""
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/box/inner\n0::/\n")
    mounts = "30 1 0:30 / /cg/cpu rw - cgroup cgroup rw,cpu\n31 1 0:31 /box /cg/memory rw - cgroup cgroup rw,memory\n"
    (tmp_path / "mountinfo").write_text(mounts)
    assert memory_group(tmp_path) == pathlib.Path("/cg/memory/inner")
    (tmp_path / "cgroup").write_text("0::/\n")
    with pytest.raises(NotDelegated, match="version 1"):
        memory_group(tmp_path)


def test_an_order_carries_the_storage(tmp_path: pathlib.Path, tiny_artifact: pathlib.Path) -> None:
    """Through the file as well; a speed that is not known makes no plan slower, and one that cannot be is refused."""
    order = make_order(tmp_path, tiny_artifact)
    assert order.storage() == FAST_STORAGE
    slow = dataclasses.replace(order, read_bytes_s=2e7, cache_bytes=5)
    assert codec.decode(WorkerOrder, codec.encode(slow), MAX_ORDER_BYTES).storage() == Storage(2e7, 5)
    for wrong in ({"read_bytes_s": 0.0}, {"read_bytes_s": -1.0}, {"cache_bytes": -1}):
        with pytest.raises(ValueError, match="it must be"):
            dataclasses.replace(order, **wrong)
    with pytest.raises(DecodeError, match="it must be above 0"):
        codec.decode(
            WorkerOrder, codec.encode(slow).replace(b"\xcb\x41\x73\x12\xd0", b"\xcb\xc1\x73\x12\xd0"), MAX_ORDER_BYTES
        )
