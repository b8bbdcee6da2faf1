"""Groups are made where they may be, limited before anything runs in them, and their verdict is read right.

Here the files of a cgroup are ordinary ones. What the kernel does with them is tested, wherever it lets us, in
test_supervisor.py.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from edge_sdk.cgroup import AGENT, NotDelegated, TaskGroup, claim, delegated_group, in_task_group, own_group, task_group

MB = 10**6


class Tree:
    """A hierarchy of groups mounted in `top`, and the /proc folder of a process in one of them, `/unit`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.top, self.proc, self.unit = folder / "top", folder / "proc", folder / "top" / "unit"
        self.unit.mkdir(parents=True)
        self.proc.mkdir()
        for name, text in {
            "cgroup.controllers": "cpu memory pids\n",
            "cgroup.subtree_control": "",
            "cgroup.procs": f"{os.getpid()}\n",
            "memory.max": "max\n",
        }.items():
            (self.unit / name).write_text(text)
        self.mounts("/")
        self.inside("/unit")

    def inside(self, group: str) -> None:
        """Say in which group the process is, among hierarchies of version 1."""
        (self.proc / "cgroup").write_text(f"4:memory:/v1\n1:name=systemd:/v1\n0::{group}\n")

    def mounts(self, *roots: str) -> None:
        """Say which parts of the hierarchy are mounted: the first ones elsewhere, the last one in `top`."""
        *others, last = roots
        points = [(root, "/nowhere") for root in others] + [(last, str(self.top))]
        lines = ["31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw", "32 31 0:29 / /v1 rw - cgroup cgroup rw"]
        lines += [f"41 31 0:38 {root} {point} rw,relatime shared:4 - cgroup2 cgroup2 rw" for root, point in points]
        (self.proc / "mountinfo").write_text("\n".join(lines) + "\n")


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Tree:
    """A group that is ours to divide."""
    return Tree(tmp_path)


def test_our_group_is_found(tree: Tree) -> None:
    """It is where its hierarchy is mounted, as far as that is mounted: also from inside a container."""
    assert own_group(tree.proc) == tree.unit
    tree.inside("/docker/abc/unit")
    tree.mounts("/elsewhere", "/docker/abc")
    assert own_group(tree.proc) == tree.unit


def test_no_group_is_found_where_there_is_none(tree: Tree) -> None:
    """Version 1 alone, and a hierarchy of which we see another part."""
    tree.mounts("/elsewhere")
    with pytest.raises(NotDelegated, match="no cgroup v2 here"):
        own_group(tree.proc)
    tree.mounts("/")
    (tree.proc / "cgroup").write_text("4:memory:/v1\n")
    with pytest.raises(NotDelegated, match="no cgroup v2 here"):
        own_group(tree.proc)


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("cgroup.controllers", "cpu pids\n", "no memory controller in"),
        ("memory.max", None, "is the root of all groups"),
        ("cgroup.subtree_control", None, "is not ours to divide"),
        ("cgroup.procs", f"1\n{os.getpid()}\n", "other processes are in"),
        ("cgroup.controllers", None, "No such file or directory"),
    ],
    ids=["no controller", "root", "not writable", "not alone", "unmounted"],
)
def test_what_is_not_delegated_is_left_alone(tree: Tree, file: str, text: str | None, why: str) -> None:
    """Each reason is told in one line, and nothing is changed."""
    (tree.unit / file).unlink()
    if text is not None:
        (tree.unit / file).write_text(text)
    before = {path: path.read_text() for path in tree.unit.iterdir()}
    with pytest.raises(NotDelegated, match=f"^.*{why}.*$"):
        claim(tree.proc)
    assert {path: path.read_text() for path in tree.unit.iterdir()} == before


def test_a_group_is_claimed_once_and_again(tree: Tree) -> None:
    """This process moves into a leaf, so that groups beside it can be limited; from there it finds the same home."""
    assert delegated_group(tree.proc) == tree.unit
    assert not (tree.unit / AGENT).exists()
    assert claim(tree.proc) == tree.unit
    assert (tree.unit / AGENT / "cgroup.procs").read_text() == str(os.getpid())
    assert (tree.unit / "cgroup.subtree_control").read_text() == "+memory"
    (tree.unit / "cgroup.procs").write_text("")
    tree.inside(f"/unit/{AGENT}")
    assert claim(tree.proc) == tree.unit


def test_the_kernel_has_the_last_word(tree: Tree) -> None:
    """A refusal while claiming is told like any other reason."""
    (tree.unit / AGENT).write_text("in the way")
    with pytest.raises(NotDelegated, match=r"cannot be divided: File exists"):
        claim(tree.proc)


STARTED = "import pathlib, sys; print(*(pathlib.Path(sys.argv[1], name).read_text() for name in sys.argv[2:]))"


def test_a_child_is_limited_before_it_starts(tree: Tree) -> None:
    """At its first line it is in the group, and the limits stand; what it is told reaches it unchanged."""
    with task_group(tree.unit, 100 * MB) as group:
        names = ("cgroup.procs", "memory.max", "memory.oom.group")
        command = group.command([sys.executable, "-c", STARTED, str(group.folder), *names])
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said.split() == ["0", "100000000", "1"]
        odd = ["printf", "%s|", "a b", "", "$0", "'"]
        assert subprocess.run(group.command(odd), check=True, capture_output=True, text=True).stdout == "a b||$0|'|"


def test_a_child_that_cannot_enter_does_not_run(tree: Tree) -> None:
    """Outside the group it would be unlimited: it fails, and says why."""
    group = TaskGroup(tree.unit / "gone", 100 * MB)
    done = subprocess.run(group.command(["echo", "unlimited"]), check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert not done.stdout
    assert "gone/cgroup.procs" in done.stderr


def test_swap_is_no_way_out_where_there_is_swap(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with swap has a file for it, which a new group is born with; one without has none, and none is made."""
    with task_group(tree.unit, MB) as group:
        assert group.folder is not None
        assert not (group.folder / "memory.swap.max").exists()
    born = tree.unit / "task-born"
    born.mkdir()
    (born / "memory.swap.max").write_text("max")
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(born))
    with task_group(tree.unit, MB):
        assert (born / "memory.swap.max").read_text() == "0"


@pytest.mark.parametrize(
    ("oom", "oom_kill", "peak", "verdict"),
    [(0, 0, 7, 0), (1, 0, 7, 0), (0, 1, 7, 0), (1, 2, 7, 7), (1, 2, None, MB)],
    ids=["well", "refused", "the machine's", "the limit's", "old kernel"],
)
def test_only_a_kill_at_the_limit_is_the_limits(
    tmp_path: pathlib.Path, oom: int, oom_kill: int, peak: int | None, verdict: int
) -> None:
    """A kill because the whole machine ran out is not counted as one; the peak is measured where the kernel can."""
    (tmp_path / "memory.events").write_text(f"low 0\nhigh 0\nmax 90\noom {oom}\noom_kill {oom_kill}\n")
    if peak is not None:
        (tmp_path / "memory.peak").write_text(f"{peak}\n")
    assert TaskGroup(tmp_path, MB).killed_at_bytes() == verdict


def test_without_a_group_nothing_is_different() -> None:
    """The command is the command, and nothing was killed."""
    with task_group(None, MB) as group:
        assert group.command(("echo", "x")) == ["echo", "x"]
        assert group.killed_at_bytes() == 0


def test_a_worker_knows_that_it_is_limited(tree: Tree) -> None:
    """In a task's group whose limit is not above the budget, and nowhere else."""
    assert not in_task_group(MB, tree.proc)
    (tree.unit / "memory.max").write_text("4096\n")
    assert not in_task_group(MB, tree.proc)
    (tree.unit / "task-x").mkdir()
    tree.inside("/unit/task-x")
    assert not in_task_group(MB, tree.proc)
    for text, held in (("max\n", False), (f"{MB + 4096}\n", False), (f"{MB // 4096 * 4096}\n", True)):
        (tree.unit / "task-x" / "memory.max").write_text(text)
        assert in_task_group(MB, tree.proc) is held
