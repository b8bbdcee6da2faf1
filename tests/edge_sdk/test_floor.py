"""What a device's owner asks for is held against every task, and a roster is read or refused in a line."""

from __future__ import annotations

import pathlib

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.events import FetchManifest, Instruction, Send
from edge_sdk.floor import Floor
from edge_sdk.session import Session
from edge_sdk.wire.messages import DeclineReason, Task, TaskDeclined, TaskOffer
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure.said import Masking
from tests.edge_sdk.samples import make_hello, make_task

MASKING = Masking("run.1.1", 1.0, 1000, 4)


def offered(floor: Floor, task: Task) -> list[Instruction]:
    """What a device with this floor does about a task."""
    session = Session(make_hello(), (), 0.0, floor=floor)
    return session.handle(TaskOffer(task, 1, 0.0), 0.0)


def test_a_task_below_the_floor_is_declined() -> None:
    """Without a secure sum where the owner wants one; the reason is told, and nothing is fetched."""
    found = offered(Floor(secure_sum=True), make_task())
    (said,) = [one.message for one in found if isinstance(one, Send)]
    assert isinstance(said, TaskDeclined)
    assert said.reason is DeclineReason.PRIVACY
    assert "secure sums alone" in said.detail
    assert not [one for one in found if isinstance(one, FetchManifest)]


@pytest.mark.parametrize("noise", [None, ExampleNoise(1.0, 0.9)])
def test_less_noise_than_asked_for_is_declined(noise: ExampleNoise | None) -> None:
    """None at all, or too little beside the bound."""
    found = offered(Floor(noise_multiplier=1.0), make_task(example_noise=noise))
    (said,) = [one.message for one in found if isinstance(one, Send)]
    assert isinstance(said, TaskDeclined)
    assert said.reason is DeclineReason.PRIVACY
    assert "this device asks for 1" in said.detail


@pytest.mark.parametrize(
    ("floor", "task"),
    [
        (Floor(), make_task()),
        (Floor(secure_sum=True), make_task(masking=MASKING)),
        (Floor(noise_multiplier=1.0), make_task(example_noise=ExampleNoise(1.0, 1.0))),
    ],
)
def test_others_are_begun(floor: Floor, task: Task) -> None:
    """Where the owner asks nothing, or the task gives it."""
    assert [one for one in offered(floor, task) if isinstance(one, FetchManifest)]


def test_a_roster_is_a_line_for_each_device(tmp_path: pathlib.Path) -> None:
    """Empty lines do not matter."""
    path = tmp_path / "roster.txt"
    path.write_text(f"pi-1 {'ab' * 32}\n\n pi-2 {'cd' * 32} \n", encoding="utf-8")
    assert Floor(roster=path).peers() == {"pi-1": b"\xab" * 32, "pi-2": b"\xcd" * 32}
    assert Floor().peers() is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("pi-1", "line 1"), (f"pi-1 {'AB' * 32}", "line 1"), (f"pi-1 {'ab' * 32}\npi-2 {'ab' * 31}", "line 2")],
)
def test_a_line_that_is_none_is_named(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    """With what to write instead: half a roster would let nobody in, or somebody too many."""
    path = tmp_path / "roster.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        Floor(roster=path).peers()


def test_a_roster_that_is_not_there_is_said(tmp_path: pathlib.Path) -> None:
    """In one line with its name."""
    with pytest.raises(ConfigError, match=r"roster\.txt: cannot be read"):
        Floor(roster=tmp_path / "roster.txt").peers()
