"""The store keeps what is needed, evicts what was not used for longest, and says when neither is enough."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.store import RESERVE_BYTES, DeviceStore, NoSpace
from edge_sdk.wire.blobs import Blob, blob_of

SIZE = 4096  # whole disk blocks, so that sizes are the same by any measure


def with_blobs(
    folder: pathlib.Path, count: int, quota: int, free_bytes: int = 10**12
) -> tuple[DeviceStore, list[Blob]]:
    """A store of `count` blobs, the first of them the least recently used; `quota` in blobs."""
    store = DeviceStore(folder, quota * SIZE, lambda _folder: free_bytes)
    blobs = [store.blobs.put(bytes([k]) * SIZE) for k in range(count)]
    for k, blob in enumerate(blobs):
        os.utime(store.blobs.path(blob.sha256), (k, k))
    return store, blobs


def present(store: DeviceStore, blobs: list[Blob]) -> list[int]:
    """Which of `blobs` are there."""
    return [k for k, blob in enumerate(blobs) if store.blobs.has(blob)]


def test_nothing_is_evicted_while_there_is_room(tmp_path: pathlib.Path) -> None:
    """What fits beside everything else costs nothing."""
    store, blobs = with_blobs(tmp_path, 3, quota=5)
    assert store.make_room(2 * SIZE, set()) is None
    assert present(store, blobs) == [0, 1, 2]


def test_the_least_recently_used_goes_first(tmp_path: pathlib.Path) -> None:
    """No more than needed is evicted; use saves a blob, and so does being needed."""
    store, blobs = with_blobs(tmp_path, 4, quota=4)
    store.used([blobs[0]])
    assert store.make_room(SIZE, {blobs[1].sha256}) is None
    assert present(store, blobs) == [0, 1, 3]


def test_what_cannot_fit_evicts_nothing(tmp_path: pathlib.Path) -> None:
    """The answer says how much there would be; the blobs stay, they may serve another task."""
    store, blobs = with_blobs(tmp_path, 4, quota=4)
    assert store.make_room(4 * SIZE, {blobs[0].sha256}) == NoSpace(4 * SIZE, 3 * SIZE)
    assert present(store, blobs) == [0, 1, 2, 3]


def test_the_disk_counts_too(tmp_path: pathlib.Path) -> None:
    """A quota is no promise of the disk's: blobs go when it is nearly full, and a reserve is left to the system."""
    store, blobs = with_blobs(tmp_path, 2, quota=100, free_bytes=RESERVE_BYTES + SIZE)
    assert store.make_room(2 * SIZE, set()) is None
    assert present(store, blobs) == [1]
    answer = store.make_room(5 * SIZE, set())
    assert answer == NoSpace(5 * SIZE, 2 * SIZE)
    assert "\n" not in str(answer)


def test_what_has_arrived_is_not_counted_twice(tmp_path: pathlib.Path) -> None:
    """A download that goes on needs no more room than when it began; one that nobody wants is evicted."""
    store, _ = with_blobs(tmp_path, 0, quota=2)
    wanted, unwanted = blob_of(b"wanted"), blob_of(b"unwanted")
    (tmp_path / "partial").mkdir()
    parts = [tmp_path / "partial" / f"{blob.sha256}.part" for blob in (wanted, unwanted)]
    for part in parts:
        part.write_bytes(b"x" * SIZE)
    assert store.make_room(2 * SIZE, {wanted.sha256}) is None
    assert [part.exists() for part in parts] == [True, False]


def test_missing_lists_each_once(tmp_path: pathlib.Path) -> None:
    """Tensors shared by several names are fetched once."""
    store, (here,) = with_blobs(tmp_path, 1, quota=5)
    absent = blob_of(b"absent")
    assert store.missing([absent, here, absent]) == [absent]


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"?" + data[1:]])
def test_a_damaged_blob_is_removed_so_that_it_comes_again(
    tmp_path: pathlib.Path, change: Callable[[bytes], bytes]
) -> None:
    """A card that lies costs a download, not the device."""
    store, blobs = with_blobs(tmp_path, 2, quota=5)
    path = store.blobs.path(blobs[0].sha256)
    path.write_bytes(change(path.read_bytes()))
    store.remove_damaged(blobs)
    assert store.missing(blobs) == [blobs[0]]


def test_what_was_removed_is_said(tmp_path: pathlib.Path) -> None:
    """How many files, and how large, went for what; nothing is said where there was room, or none could be made."""
    lines: list[str] = []
    store = DeviceStore(tmp_path, 3_000_000, lambda _folder: 10**12, lines.append)
    for k in range(3):
        store.blobs.put(bytes([k]) * 1_000_000)
    assert store.make_room(0, set()) is None
    assert store.make_room(4_000_000, set()) is not None
    assert lines == []
    assert store.make_room(2_000_000, set()) is None
    assert lines == ["removed the 2 files that were not used for longest, 2 MB: 2 MB come"]


@settings(max_examples=50)
@given(quota=st.integers(0, 6), needed=st.integers(0, 6), kept=st.sets(st.integers(0, 3)))
def test_room_is_made_or_refused(
    tmp_path_factory: pytest.TempPathFactory, quota: int, needed: int, kept: set[int]
) -> None:
    """Whatever is asked for: what is kept stays, and a yes means that it fits within the quota."""
    store, blobs = with_blobs(tmp_path_factory.mktemp("store"), 4, quota)
    answer = store.make_room(needed * SIZE, {blobs[k].sha256 for k in kept})
    left = present(store, blobs)
    assert kept <= set(left)
    assert (answer is None) == (len(kept) + needed <= quota)
    if answer is None:
        assert len(left) + needed <= quota
