"""Runs the scenes of power cuts: every image that a cut may leave is checked, in this process."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

from benchmarks.reliability.power_cuts import Tree, follow, found, make, record
from benchmarks.reliability.power_scenes import CONTROL, CONTROL_NAME, SCENES, Scene


@dataclass(frozen=True, slots=True)
class Cuts:
    """After how many `steps` the power was cut, how many different `images` that may leave, and in which of them what
    did not hold.
    """

    scene: str
    steps: int
    images: int
    broken: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether all held; of the control, whether it did not."""
        return bool(self.broken) == (self.scene == CONTROL_NAME)


def available() -> bool:
    """Whether there is a strace that may trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", os.devnull, sys.executable, "-c", ""], capture_output=True, check=False)
    return done.returncode == 0


def cut(name: str, folder: pathlib.Path, seed: int) -> Cuts:
    """Run a scene, and check what every power cut may leave of it. Raises NotFollowed, CalledProcessError, OSError."""
    scene, place, marks = _scene(name), folder / "folder", folder / "marks"
    for one in (place, marks):
        one.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.reliability.power_scenes", name, str(place), str(marks)]
    record(command, folder / "trace")
    real, lots = found(place), random.Random(seed)  # noqa: S311 - which images are tried
    images, steps, last = dict[str, tuple[Tree, frozenset[str]]](), 0, dict[str, bytes | None]()
    for disk, passed in follow(folder / "trace", place, marks):
        steps += 1
        for tree in disk.trees(lots):
            images.setdefault(repr((tree, sorted(passed))), (tree, passed))
        last = disk.tree(tuple(disk.pending), {k: file.pending for k, file in enumerate(disk.files)})
    if last != real:
        msg = f"what was traced of {name} is not what it did"
        raise AssertionError(msg)
    broken = Counter[str]()
    for tree, passed in images.values():
        make(tree, place)
        if lacks := _lacks(scene, place, passed):
            broken[lacks] += 1
    return Cuts(name, steps, len(images), dict(broken))


def _scene(name: str) -> Scene:
    return CONTROL if name == CONTROL_NAME else SCENES[name]


def _lacks(scene: Scene, folder: pathlib.Path, marks: frozenset[str]) -> str:
    try:
        return scene.lacks(folder, marks)
    except Exception as error:  # noqa: BLE001 - whatever is found must be dealt with
        return f"{type(error).__name__}: {error}"
