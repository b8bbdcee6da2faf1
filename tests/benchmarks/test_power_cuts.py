"""What a power cut may leave: a model of disks, held to real files; and that our files survive what it allows."""

from __future__ import annotations

import pathlib
import random
import shutil
import sys

import pytest

from benchmarks.reliability.power import available, cut
from benchmarks.reliability.power_cuts import FOLDER, Disk, Name, NotFollowed, Tree, Write, follow, found, make, record
from benchmarks.reliability.power_scenes import CONTROL_NAME, SCENES

needs_strace = pytest.mark.skipif(not available(), reason="no strace that may trace: apt-get install strace")


def trees(disk: Disk) -> list[Tree]:
    """What may be left, many times by lot."""
    return [tree for seed in range(40) for tree in disk.trees(random.Random(seed))]  # noqa: S311 - lots


def test_what_was_synced_is_there_and_what_was_not_may_not_be() -> None:
    """Bytes by a sync of the file, its name by one of its folder, that one's by one of the folder above."""
    disk = Disk()
    disk.pending.append(Name(None, "a"))
    number = disk.file()
    disk.pending.append(Name(None, "a/file", number))
    disk.files[number].pending.append(Write(0, b"bytes"))
    assert {} in trees(disk)
    assert {"a": None, "a/file": b""} in trees(disk), "a name without its bytes"
    disk.sync_file(number)
    disk.sync_folder("a")
    assert {} in trees(disk), "the folder has no name yet"
    disk.sync_folder("")
    assert trees(disk) == [{"a": None, "a/file": b"bytes"}] * len(trees(disk))


def test_a_write_may_be_there_in_part() -> None:
    """Of two writes any one, both, or a piece; never what nobody wrote."""
    disk = Disk(names={"file": 0})
    disk.files[disk.file()].pending.extend([Write(0, b"one"), Write(3, b"two")])
    left = {content for tree in trees(disk) for content in tree.values()}
    assert {b"", b"onetwo", b"one", b"\0\0\0two"} <= left
    assert all(len(content or b"") <= 6 for content in left)


def test_a_rename_is_whole() -> None:
    """One name or the other, never both and never none; and it needs no name that the old one had on the disk."""
    disk = Disk(names={"old": 0, "new": 1})
    disk.file()
    disk.files[disk.file()].durable = b"before"
    disk.files[0].durable = b"after"
    disk.pending.append(Name("old", "new", 0))
    assert {str(sorted(tree.items())) for tree in trees(disk)} == {
        str([("new", b"before"), ("old", b"after")]),
        str([("new", b"after")]),
    }
    fresh = Disk()
    number = fresh.file()
    fresh.pending.extend([Name(None, "making", number), Name("making", "made", number)])
    fresh.sync_folder("")
    assert fresh.names == {"made": number}
    assert not fresh.pending


@needs_strace
def test_what_is_traced_is_what_was_done(tmp_path: pathlib.Path) -> None:
    """A program with every kind of change: with all of them there is what really lies there."""
    place, marks = tmp_path / "place", tmp_path / "marks"
    place.mkdir()
    marks.mkdir()
    program = (
        "import os, pathlib, sys; f = pathlib.Path(sys.argv[1]); (f / 'a' / 'b').mkdir(parents=True);"
        "(f / 'a' / 'x').write_bytes(b'x' * 9999); (f / 'y').write_bytes(b'y'); os.mkdir(sys.argv[2] + '/half');"
        "h = os.open(f / 'y', os.O_RDWR); os.pwrite(h, b'z', 5); os.ftruncate(h, 4); os.lseek(h, 2, 0);"
        "os.write(h, b'w'); os.fsync(h); os.close(h); (f / 'a' / 'x').replace(f / 'z'); (f / 'y').write_bytes(b'');"
        "(f / 'gone').touch(); (f / 'gone').unlink()"
    )
    record([sys.executable, "-c", program, str(place), str(marks)], tmp_path / "trace")
    steps = [(disk.now(), passed) for disk, passed in follow(tmp_path / "trace", place, marks)]
    disk, passed = list(follow(tmp_path / "trace", place, marks))[-1]
    last = disk.tree(tuple(disk.pending), {k: file.pending for k, file in enumerate(disk.files)})
    assert last == found(place) == {"a": None, "a/b": None, "y": b"", "z": b"x" * 9999}
    assert passed == {"half"}
    assert steps[0] == ({"a": FOLDER}, frozenset())
    make(last, tmp_path / "again")
    assert found(tmp_path / "again") == last
    copies = "import os, sys; os.posix_fallocate(os.open(sys.argv[1] + '/file', os.O_CREAT | os.O_RDWR), 0, 9)"
    shutil.rmtree(place)
    place.mkdir()
    record([sys.executable, "-c", copies, str(place)], tmp_path / "trace")
    with pytest.raises(NotFollowed, match="fallocate"):
        list(follow(tmp_path / "trace", place, marks))


@needs_strace
@pytest.mark.parametrize("name", SCENES)
def test_whenever_the_power_goes(name: str, tmp_path: pathlib.Path) -> None:
    """An artifact on its way in, results with their residuals, identity and versions, a file that is replaced: in all
    that a power cut may leave after any step, what was promised holds.
    """
    cuts = cut(name, tmp_path, seed=1)
    assert cuts.steps > 10
    assert cuts.images > 10
    assert cuts.broken == {}
    assert cuts.passed


@needs_strace
def test_the_control_fails(tmp_path: pathlib.Path) -> None:
    """A file that is replaced without a sync is found lost, and found torn."""
    cuts = cut(CONTROL_NAME, tmp_path, seed=1)
    assert any("is gone" in lacks for lacks in cuts.broken)
    assert any("no version" in lacks for lacks in cuts.broken)
    assert cuts.passed
