"""An emulated board is told what a Raspberry Pi tells, and its wheels are the ones that we pinned."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re

import pytest
from packaging.requirements import Requirement

from benchmarks.aarch64 import CONTROL, NEWEST, OLDEST
from benchmarks.emulation import CORES, CPUS, Cpu, Wheel, debian_mirror, requirements, view
from benchmarks.fetch import FetchError

URIS = """\
'http://a.example/debian-security/dists/bookworm-security/InRelease' a_InRelease 0
'http://b.example/debian/dists/bookworm-updates/InRelease' b-updates_InRelease 0
'http://c.example/linux/debian/dists/bookworm/InRelease' c_InRelease 0
'http://b.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' b_Packages 0
"""


def allowed() -> dict[str, Requirement]:
    """What a bare install of fedpeat asks for, by name."""
    asked = map(Requirement, importlib.metadata.requires("fedpeat") or ())
    return {one.name: one for one in asked if "extra" not in str(one.marker)}


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.name)
def test_every_core_is_described_alike_everywhere(cpu: Cpu) -> None:
    """/proc/cpuinfo, the ranges under /sys and the folders under /sys speak of the same cores, all of them this CPU."""
    files = view(cpu)
    cores = {int(core) for core in re.findall(r"^processor\t: (\d+)$", files["proc/cpuinfo"], re.MULTILINE)}
    assert cores == set(range(CORES))
    assert files["proc/cpuinfo"].count(f"CPU part\t: {cpu.part:#x}\n") == CORES
    for name in ("possible", "present", "online"):
        assert files[f"sys/devices/system/cpu/{name}"] == f"{min(cores)}-{max(cores)}\n"
    folders = {int(found[1]) for path in files if (found := re.search(r"/cpu(\d+)/topology/core_id$", path))}
    assert folders == cores


def test_no_file_of_a_view_leaves_its_root() -> None:
    """Every path is relative and climbs nowhere: what is written is under the root of its CPU."""
    paths = [pathlib.PurePosixPath(path) for cpu in CPUS for path in view(cpu)]
    assert not [path for path in paths if path.is_absolute() or ".." in path.parts]


def test_the_mirror_has_the_suite_itself() -> None:
    """Neither the security archive nor another suite's line is taken for the mirror."""
    assert debian_mirror(URIS) == "http://c.example/linux/debian"


def test_without_a_mirror_of_debian_it_says_so() -> None:
    """On another system the answer is one line that says where this runs."""
    with pytest.raises(FetchError, match="no mirror of Debian bookworm"):
        debian_mirror("'http://d.example/ubuntu/dists/noble/InRelease' d_InRelease 0\n")


def test_pip_is_told_every_hash() -> None:
    """A line for each wheel, with the one version and the one hash that are accepted."""
    assert requirements([Wheel("a", "1.0", "12ab"), Wheel("b", "2", "cd34")]) == (
        "a==1.0 --hash=sha256:12ab\nb==2 --hash=sha256:cd34\n"
    )


def test_the_oldest_wheels_are_the_oldest_allowed() -> None:
    """Each of them is its dependency's lower bound (numpy's in its last patch), so that the bounds are what is run."""
    for wheel in OLDEST:
        (bound,) = [one.version for one in allowed()[wheel.name].specifier if one.operator == ">="]
        assert wheel.version == bound or wheel.version.startswith(f"{bound}."), wheel


def test_what_runs_is_allowed_and_the_control_is_not() -> None:
    """pyproject.toml lets a device install what the boards run, and keeps it from the runtime that dies."""
    assert all(allowed()[wheel.name].specifier.contains(wheel.version) for wheel in (*OLDEST, *NEWEST))
    assert not allowed()["onnxruntime"].specifier.contains(CONTROL[0].version)
