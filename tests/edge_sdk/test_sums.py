"""A device's part in secure sums survives its process, and says nothing that is not on its disk."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import stat

import pytest

from edge_sdk.identity import Identity
from edge_sdk.outbox import Outbox
from edge_sdk.secure.sums import Sums
from edge_sdk.secure.vault import NUMBERS, SUM, Vault
from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.messages import Task
from edge_sdk.wire.secure import ring
from edge_sdk.wire.secure.said import MaskInbox, Masking, MaskPeers, Peer, UnmaskCall
from tests.edge_sdk.masked import Device
from tests.edge_sdk.samples import make_report, make_task

SHAPES = {"w": (5,)}
MASKING = Masking("run.1.1", 1.0, ring.levels_for(8), 8)


class Scene:
    """A device with a store, and three that are real neighbours."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.identity = Identity(folder / "identity")
        self.outbox = Outbox(folder / "outbox")
        self.task = make_task("t", masking=MASKING)
        self.others = {name: Device(name, k + 1, SHAPES, MASKING) for k, name in enumerate("bcd")}
        self.sums = self.start()

    def start(self) -> Sums:
        """The process, or the next one."""
        self.sums = Sums(self.folder / "sums", self.identity, "a")
        return self.sums

    def join(self, task: Task | None = None) -> Peer:
        """It has trained."""
        path, out = self.folder / "delta", io.BytesIO()
        ring.write_numbers(out, self.others["b"].delta, 3, MASKING)
        path.write_bytes(out.getvalue())
        keys = self.sums.join(task or self.task, path, make_report())
        return Peer.of("a", self.identity.signer.public, keys)

    def dealt(self) -> MaskInbox:
        """Everybody has dealt; the boxes for the device."""
        me = self.join()
        peers = {name: Peer.of(name, one.signer.public, one.keys) for name, one in self.others.items()}
        self.sums.deal(MaskPeers("t", tuple(peers.values())))
        boxes = {}
        for name, one in self.others.items():
            beside = sorted([me, *(peer for other, peer in peers.items() if other != name)], key=lambda p: p.device)
            boxes[name] = one.deal(MaskPeers(f"task.{name}", tuple(beside))).boxes["a"]
        return MaskInbox("t", boxes)


def test_what_is_kept_is_its_owners_alone(tmp_path: pathlib.Path) -> None:
    """Secrets lie in a folder that nobody else can enter."""
    scene = Scene(tmp_path)
    scene.join()
    assert stat.S_IMODE((tmp_path / "sums").stat().st_mode) == 0o700
    assert {path.suffix for path in (tmp_path / "sums").iterdir()} == {SUM, NUMBERS}


def test_a_process_that_is_killed_goes_on(tmp_path: pathlib.Path) -> None:
    """After each step a new process says the same keys, deals the same boxes, makes the same masked delta, and gives up
    the same shares.
    """
    scene = Scene(tmp_path)
    inbox = scene.dealt()
    keys = scene.sums.waiting(scene.outbox)
    assert scene.start().waiting(scene.outbox) == keys
    peers = tuple(Peer.of(n, o.signer.public, o.keys) for n, o in scene.others.items())
    assert scene.sums.deal(MaskPeers("t", peers)) == scene.start().deal(MaskPeers("t", peers))
    offer = scene.sums.mask(inbox, scene.outbox, tmp_path / "spare")
    assert offer is not None
    masked = scene.outbox.deltas.read(offer.delta)
    assert scene.start().waiting(scene.outbox) == {}, "it is a result now"
    assert scene.sums.mask(inbox, scene.outbox, tmp_path / "spare") is None
    call = UnmaskCall("t", ("b", "c"), ("d",))
    assert scene.sums.reveal(call) == scene.start().reveal(call)
    with pytest.raises(MaskError, match="another call"):
        scene.start().reveal(UnmaskCall("t", ("b", "c", "d"), ()))
    assert len(masked) == ring.size_bytes(SHAPES)


def test_killed_while_it_masks_it_masks_the_same(tmp_path: pathlib.Path) -> None:
    """A masked delta that was not yet a result is made again, bit for bit: two of them would tell their difference."""
    scene = Scene(tmp_path)
    inbox, found = scene.dealt(), []
    numbers = next((tmp_path / "sums").glob(f"*{NUMBERS}")).read_bytes()
    for _ in range(2):
        offer = scene.start().mask(inbox, scene.outbox, tmp_path / "spare")
        assert offer is not None
        found.append(offer.delta)
        scene.outbox.forget("t", offer.delta, accepted=False)
        Vault(tmp_path / "sums").numbers("t").write_bytes(numbers)
    assert found[0] == found[1]


def test_a_new_sum_ends_the_one_before(tmp_path: pathlib.Path) -> None:
    """Its secrets are forgotten, and it gives up nothing any more."""
    scene = Scene(tmp_path)
    inbox = scene.dealt()
    scene.join(dataclasses.replace(scene.task, task_id="u"))
    with pytest.raises(MaskError, match="no part in"):
        scene.sums.mask(inbox, scene.outbox, tmp_path / "spare")
    assert len(list((tmp_path / "sums").glob(f"*{SUM}"))) == 1


def test_what_is_forgotten_is_gone(tmp_path: pathlib.Path) -> None:
    """Record and numbers, also for the next process; forgetting twice is no error."""
    scene = Scene(tmp_path)
    scene.join()
    scene.sums.forget("t")
    scene.sums.forget("t")
    assert not list((tmp_path / "sums").iterdir())
    assert scene.start().waiting(scene.outbox) == {}


def test_a_damaged_record_is_set_aside_and_said(tmp_path: pathlib.Path) -> None:
    """The device goes on without it, and numbers that belong to none are swept up."""
    scene = Scene(tmp_path)
    scene.join()
    (path,) = (tmp_path / "sums").glob(f"*{SUM}")
    path.write_bytes(path.read_bytes()[:-1])
    (complaint,) = scene.start().complaints
    assert "set aside" in complaint
    assert not list((tmp_path / "sums").glob(f"*{NUMBERS}"))


def test_a_task_without_a_sum_is_misuse(tmp_path: pathlib.Path) -> None:
    """Nothing is kept of it."""
    scene = Scene(tmp_path)
    with pytest.raises(ValueError, match="no sum"):
        scene.join(make_task("t"))
