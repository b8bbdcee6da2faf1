"""Power cuts, on every step of a program and in every way that POSIX allows: what may be left of a folder, made real.

A kill keeps what the kernel has not yet written; a power cut need not. `strace` tells every change that a real process
made to a folder, in order. After each of them, what is on the disk for certain is what was synced: a file's bytes by
fsync or fdatasync of it, a name (made, moved, removed) by fsync of its folder. All else may be there or not, each by
itself, and a write may be there in part. Renames alone are whole, as every file system of Linux has them.

`images` makes folders as they may be found afterwards: with nothing of what was not synced, with all of it, with names
and no bytes, with bytes and no names, and some by lot.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

CALLS: Final = (
    "openat,open,creat,close,write,pwrite64,writev,pwritev,lseek,ftruncate,truncate,fallocate,fsync,fdatasync,rename,"
    "renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,copy_file_range,sendfile"
)
LINE: Final = re.compile(r"(?P<call>\w+)\((?P<said>.*)\)\s+= (?P<result>-?\d+)")
TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
LOTS: Final = 3  # images by lot after each step
FOLDER: Final = -1  # in place of a file's number


class NotFollowed(Exception):  # noqa: N818 - the test bench's own limit, no error of what is tested
    """The program changed a file in a way that is not followed here."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that go into a file at a place; without bytes, the file gets that length."""

    begin: int
    data: bytes | None

    def applied(self, content: bytes) -> bytes:
        """The file's bytes afterwards."""
        if self.data is None:
            return content[: self.begin].ljust(self.begin, b"\0")
        content = content.ljust(self.begin, b"\0")
        return content[: self.begin] + self.data + content[self.begin + len(self.data) :]


@dataclass(slots=True)
class File:
    """Its bytes on the disk, and what was written since."""

    durable: bytes = b""
    pending: list[Write] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """As the running system has it."""
        return self.with_writes(self.pending)

    def with_writes(self, writes: Sequence[Write]) -> bytes:
        """With these of what is pending."""
        content = self.durable
        for write in writes:
            content = write.applied(content)
        return content


@dataclass(frozen=True, slots=True)
class Name:
    """A change of a name: the file or folder `number` loses the name `old`, if it has one, and gets `new`, if any."""

    old: str | None
    new: str | None
    number: int = FOLDER

    def folders(self) -> set[str]:
        """Those that it is in."""
        return {os.path.dirname(name) for name in (self.old, self.new) if name is not None}  # noqa: PTH120 - texts

    def applied(self, names: dict[str, int]) -> None:
        """Change the names. A file that is moved has its new name, whether its old one ever was on the disk or not."""
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            names[self.new] = self.number


Tree: TypeAlias = dict[str, bytes | None]  # by path below the folder: a file's bytes, or None for a folder


@dataclass(slots=True)
class Disk:
    """A folder at one moment: names on the disk, and changes of them since; files by number."""

    names: dict[str, int] = field(default_factory=dict)
    pending: list[Name] = field(default_factory=list)
    files: list[File] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        """The names as the running system has them."""
        names = dict(self.names)
        for change in self.pending:
            change.applied(names)
        return names

    def file(self) -> int:
        """A new file's number."""
        self.files.append(File())
        return len(self.files) - 1

    def sync_folder(self, folder: str) -> None:
        """Every name in it is on the disk. A name that is gone for certain is not given any more."""
        for change in [one for one in self.pending if folder in one.folders()]:
            change.applied(self.names)
            before = self.pending[: self.pending.index(change)]
            self.pending.remove(change)
            for one in before:
                if one.new is not None and one.new == change.old:
                    self.pending.remove(one)

    def sync_file(self, number: int) -> None:
        """All bytes of it are on the disk."""
        self.files[number] = File(self.files[number].content)

    def tree(self, changes: Sequence[Name], writes: dict[int, Sequence[Write]]) -> Tree:
        """What is found with these of the pending changes and writes; nothing is in a folder that is not there."""
        names = dict(self.names)
        for change in changes:
            change.applied(names)
        found: Tree = {}
        for path in sorted(names, key=lambda path: path.count("/")):
            parent = os.path.dirname(path)  # noqa: PTH120 - texts
            if not parent or parent in found:
                number = names[path]
                found[path] = None if number == FOLDER else self.files[number].with_writes(writes.get(number, ()))
        return found

    def trees(self, lots: random.Random) -> Iterator[Tree]:
        """What may be found after a power cut now."""
        all_writes: dict[int, Sequence[Write]] = {k: file.pending for k, file in enumerate(self.files) if file.pending}
        for changes in ((), tuple(self.pending)):
            for writes in ({}, all_writes):
                yield self.tree(changes, writes)
        if self.pending or all_writes:
            for _ in range(LOTS):
                some = tuple(change for change in self.pending if lots.random() < 0.5)
                yield self.tree(some, {k: tuple(_torn(writes, lots)) for k, writes in all_writes.items()})


def _torn(writes: Sequence[Write], lots: random.Random) -> Iterator[Write]:
    """Some of them, some in part."""
    for write in writes:
        fate = lots.randrange(3)
        if fate == 0 or write.data is None:
            yield write
        elif fate == 1:
            yield Write(write.begin, write.data[: lots.randrange(len(write.data) + 1)])


@dataclass(slots=True)
class _Open:
    number: int  # of a file, or FOLDER
    path: str
    place: int = 0


def record(command: Sequence[str], trace: pathlib.Path) -> None:
    """Run a program under strace. Raises CalledProcessError, and FileNotFoundError where there is no strace."""
    strace = ["strace", "-xx", "-s", str(1 << 24), "-e", f"trace={CALLS}", "-o", str(trace)]
    subprocess.run([*strace, *command], check=True, capture_output=True, text=True)


def follow(trace: pathlib.Path, folder: pathlib.Path, marks: pathlib.Path) -> Iterator[tuple[Disk, frozenset[str]]]:
    """The folder's disk after each change of it, and which marks were set: folders that were made below `marks`.

    Raises NotFollowed. The folder is empty at first, and the same Disk is changed from step to step.
    """
    reader, passed = _Reader(folder), set[str]()
    with trace.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = LINE.match(line)
            if found is None or int(found["result"]) < 0:
                continue
            said = TEXT.findall(found["said"])
            if found["call"].startswith("mkdir") and _text(said[0]).startswith(f"{marks}/"):
                passed.add(pathlib.PurePath(_text(said[0])).name)
            elif not reader.read(found["call"], found["said"], said, int(found["result"])):
                continue
            yield reader.disk, frozenset(passed)


class _Reader:
    """Applies calls to a disk."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.disk, self._prefix = Disk(), f"{folder}/"
        self._opened: dict[int, _Open] = {}

    def read(self, call: str, said: str, texts: list[str], result: int) -> bool:
        """Whether it changed what is, or may be, on the disk."""
        if call in {"openat", "open", "creat"}:
            return self._open(self._below(texts[0]), said, result)
        if call in {"mkdir", "mkdirat"}:
            return self._name(None, self._below(texts[0]))
        if call in {"unlink", "unlinkat", "rmdir"}:
            return self._name(self._below(texts[0]), None)
        if call in {"rename", "renameat", "renameat2"}:
            return self._name(self._below(texts[0]), self._below(texts[1]))
        handle = int(said.partition(",")[0]) if said[:1].isdigit() else FOLDER
        opened = self._opened.get(handle)
        if call == "close":
            self._opened.pop(handle, None)
        if opened is None or call == "close":
            return False
        return self._use(call, opened, said, texts, result)

    def _below(self, text: str) -> str | None:
        """Its path below the folder, "" for the folder itself; None for what is elsewhere."""
        path = f"{_text(text)}/"
        return path.removeprefix(self._prefix).removesuffix("/") if path.startswith(self._prefix) else None

    def _open(self, path: str | None, said: str, handle: int) -> bool:
        self._opened.pop(handle, None)
        if path is None:
            return False
        number = self.disk.now().get(path) if path else FOLDER
        makes = number is None
        if number is None:
            number = self.disk.file()
            self.disk.pending.append(Name(None, path, number))
        self._opened[handle] = _Open(number, path)
        if "O_TRUNC" in said and not makes:
            self.disk.files[number].pending.append(Write(0, None))
        return makes or "O_TRUNC" in said

    def _name(self, old: str | None, new: str | None) -> bool:
        if old is None and new is None:
            return False
        number = FOLDER if old is None else self.disk.now().get(old, FOLDER)
        self.disk.pending.append(Name(old, new, number))
        return True

    def _use(self, call: str, opened: _Open, said: str, texts: list[str], result: int) -> bool:
        if call in {"fsync", "fdatasync"}:
            if opened.number == FOLDER:
                self.disk.sync_folder(opened.path)
            else:
                self.disk.sync_file(opened.number)
            return True
        if call == "lseek":
            opened.place = result
            return False
        if call in {"write", "pwrite64"}:
            begin = int(said.rpartition(",")[2]) if call == "pwrite64" else opened.place
            data = bytes.fromhex(texts[0].replace("\\x", ""))[:result]
            self.disk.files[opened.number].pending.append(Write(begin, data))
            opened.place += result * (call == "write")
            return True
        if call == "ftruncate":
            self.disk.files[opened.number].pending.append(Write(int(said.rpartition(",")[2]), None))
            return True
        msg = f"{call} of {opened.path}"
        raise NotFollowed(msg)


def _text(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.replace("\\x", "")))


def make(tree: Tree, folder: pathlib.Path) -> None:
    """Write what was found below `folder`, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, content in tree.items():
        place = folder / path
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)


def found(folder: pathlib.Path) -> Tree:
    """What really lies below `folder`."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }
