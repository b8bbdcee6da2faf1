"""The clock of a device's cores, in files like the kernel's: slowed for a task, and set back whatever happens."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from edge_sdk.power import Clock, battery


def cores(root: pathlib.Path, *highest: int) -> pathlib.Path:
    """Cpufreq's files for groups of cores with these highest clocks in kilohertz; the lowest is 600 MHz."""
    for k, clock in enumerate(highest):
        policy = root / f"policy{k}"
        policy.mkdir(parents=True)
        for name, value in (("cpuinfo_min", 600_000), ("cpuinfo_max", clock), ("scaling_max", clock)):
            (policy / f"{name}_freq").write_text(f"{value}\n")
    return root


def clocks(root: pathlib.Path) -> list[int]:
    """What they are let now."""
    return [int((policy / "scaling_max_freq").read_text()) for policy in sorted(root.iterdir())]


@given(shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=4))
def test_whatever_was_asked_for_it_is_as_before(shares: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    """No core is let less than its slowest nor more than before, and at the end it is let what it was."""
    folder = tmp_path_factory.mktemp("clock")
    root = cores(folder / "cpufreq", 1_800_000, 2_400_000)
    (root / "policy1" / "scaling_max_freq").write_text("2000000")  # its owner wants no more
    clock = Clock(folder / "note", root)
    for share in shares:
        clock.slow_to(share)
        slow, fast = clocks(root)
        assert 600_000 <= slow <= 1_800_000
        assert 600_000 <= fast <= 2_000_000
        assert share == 1 or clock.share == min(slow / 1_800_000, fast / 2_400_000)
    clock.set_back()
    assert clocks(root) == [1_800_000, 2_000_000]
    assert clock.share == 1
    assert not (folder / "note").exists()


def test_what_a_killed_agent_left_is_set_back(tmp_path: pathlib.Path) -> None:
    """A process that ended without a word leaves the clock low; the next one knows what it was."""
    root = cores(tmp_path / "cpufreq", 1_500_000)
    Clock(tmp_path / "note", root).slow_to(0.5)
    assert clocks(root) == [750_000]
    Clock(tmp_path / "note", root)
    assert clocks(root) == [1_500_000]


def test_without_a_clock_it_says_so(tmp_path: pathlib.Path) -> None:
    """Where the kernel offers none, or keeps what it was, there is one line; nothing is begun that does nothing."""
    with pytest.raises(ConfigError, match="no cores whose clock can be set: leave it out"):
        Clock(tmp_path / "note", tmp_path)
    root = cores(tmp_path / "cpufreq", 1_500_000)
    (root / "policy0" / "scaling_max_freq").unlink()
    (root / "policy0" / "scaling_max_freq").mkdir()
    with pytest.raises(ConfigError, match="the cores' clock cannot be set"):
        Clock(tmp_path / "note", root)


@pytest.mark.parametrize(
    ("sensors", "share"),
    [
        (None, 1.0),
        (SimpleNamespace(percent=40, power_plugged=False), 0.4),
        (SimpleNamespace(percent=40, power_plugged=True), 1.0),
        (SimpleNamespace(percent=104, power_plugged=None), 1.0),
    ],
)
def test_what_is_left_of_a_battery(sensors: object, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share; on the mains, or where there is none, all of it."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: sensors, raising=False)
    assert battery() == share
