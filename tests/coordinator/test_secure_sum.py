"""A whole secure sum between the cores of both ends: whoever drops out when, it opens to the sum, or says why not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.secure.graph import degree, holds, neighbours
from coordinator.secure.steps import ASK_S, FACTS, Fact, Liar, Outcome, Record, SecureSum, Standing, Step, Tell
from coordinator.secure.unmask import key_of, masks_left, seed_of, unmasked_mean
from edge_sdk.wire import codec
from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.messages import MAX_MESSAGE_BYTES, decode_message, encode_message
from edge_sdk.wire.secure import ring
from edge_sdk.wire.secure.said import MAX_PEERS, MaskInbox, Masking, MaskPeers, UnmaskCall, UnmaskShares
from edge_sdk.wire.secure.shamir import threshold_of
from edge_sdk.wire.signed import HEADER, MAX_SIGNED_BYTES
from tests.edge_sdk.masked import Device

SHAPES = {"w": (6,)}
STEP_S = 60.0


class Scene:
    """One sum of devices, who may fall silent at any step, and the coordinator's facts."""

    def __init__(self, count: int, neighbours: int = 0, least: int = 3) -> None:
        self.masking = Masking("run.1.1", 1.0, ring.levels_for(count), 8)
        names = [f"d{k:02}" for k in range(count)]
        self.devices = {name: Device(name, k, SHAPES, self.masking) for k, name in enumerate(names)}
        self.sum = SecureSum(STEP_S, least, neighbours, (), 0.0)
        self.facts: list[Fact] = []
        self.liars: list[str] = []
        self.told: list[Tell] = []
        self.masked: dict[str, bytes] = {}
        self.silent: set[str] = set()
        self.now_s = 0.0

    def hear(self, outcomes: Iterable[Outcome]) -> None:
        """What is recorded is recorded; what is told is answered later."""
        for one in outcomes:
            if isinstance(one, Record):
                self.facts.append(one.fact)
            elif isinstance(one, Liar):
                self.liars.append(one.device)
            else:
                self.told.append(one)

    def gather(self) -> None:
        """Everybody joins, and the sum begins."""
        for name, device in self.devices.items():
            self.hear(self.sum.join(name, device.signer.public, device.keys))
        self.hear(self.sum.begin(self.devices, self.now_s, _lot()))

    def answer(self) -> None:
        """Whoever is not silent answers what was told."""
        told, self.told = self.told, []
        for one in told:
            device = self.devices[one.device]
            if one.device in self.silent:
                continue
            message = decode_message(encode_message(one.message))
            if isinstance(message, MaskPeers):
                self.hear(self.sum.shared(one.device, device.deal(message)))
            elif isinstance(message, MaskInbox):
                self.masked[one.device] = device.mask(message)
            elif isinstance(message, UnmaskCall):
                self.hear(self.sum.revealed(one.device, device.reveal(message)))
        self.advance()

    def advance(self) -> None:
        """Whatever is due."""
        waiting = {name for name in self.devices if name not in self.masked}
        self.hear(self.sum.advance(waiting, set(self.masked), self.now_s))

    def late(self) -> None:
        """The step's time is over."""
        self.now_s += STEP_S
        self.advance()

    def restart(self) -> None:
        """The coordinator was killed: what it knows is what it wrote."""
        read = [codec.decode(FACTS[type(fact).__name__], codec.encode(fact), MAX_MESSAGE_BYTES) for fact in self.facts]
        assert read == self.facts
        self.told.clear()
        self.sum = SecureSum(STEP_S, 3, 0, read, self.now_s)
        self.advance()
        self.hear(self.sum.ask_again(self.now_s + ASK_S))

    def run(self, drops: Sequence[set[str]], *, restarts: bool = False) -> None:
        """Through all steps: at each the next ones of `drops` fall silent before they answer."""
        self.gather()
        for gone in drops:
            self.silent |= gone
            if restarts:
                self.restart()
            step = self.sum.standing.step
            self.answer()
            if self.sum.standing.step is step and not (self.sum.opened or self.sum.failed):
                self.late()
            if self.sum.failed:
                return

    def mean(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """What it opens to."""
        standing = Standing.of(self.facts)
        blobs = [self.masked[name] for name in standing.alive]
        delta, weight = unmasked_mean(standing, blobs, SHAPES, self.masking)
        assert weight == sum(self.devices[name].weight for name in standing.alive)
        return delta.tensors["w"]

    def true_mean(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Of the deltas of those that are in it."""
        alive = [self.devices[name] for name in self.sum.standing.alive]
        total = sum(one.weight * one.delta["w"].astype(np.float64) for one in alive)
        return np.asarray(total / sum(one.weight for one in alive))


def _lot() -> random.Random:
    return random.Random(7)  # noqa: S311 - a test that can be run again


def test_nobody_drops_out() -> None:
    """The masked deltas say nothing; their sum, opened, is the devices' weighted mean."""
    scene = Scene(5)
    scene.run([set(), set(), set()])
    assert scene.sum.opened
    assert np.abs(scene.mean() - scene.true_mean()).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(4, 12), restarts=st.booleans())
def test_up_to_the_threshold_may_drop_out(data: st.DataObject, count: int, restarts: bool) -> None:  # noqa: FBT001
    """Whoever falls silent at whichever step, and however often the coordinator is killed: as long as each device has
    as many neighbours left as open a secret, the sum opens, and is that of those who delivered.
    """
    may = (count - 1) - threshold_of(count - 1)
    names = [f"d{k:02}" for k in range(count)]
    gone = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=may))
    when = [data.draw(st.integers(0, 2)) for _ in gone]
    scene = Scene(count)
    scene.run([{n for n, w in zip(gone, when, strict=True) if w == k} for k in range(3)], restarts=restarts)
    assert scene.sum.opened, scene.sum.failed
    in_it = set(names) - {n for n, w in zip(gone, when, strict=True) if w < 2}
    assert set(scene.sum.standing.alive) == in_it
    assert np.abs(scene.mean() - scene.true_mean()).max() < 1e-6


@pytest.mark.parametrize("step", [0, 1, 2])
def test_more_than_that_is_said(step: int) -> None:
    """The sum fails in a line, and nothing comes of it."""
    scene = Scene(6)
    drops = [set[str](), set[str](), set[str]()]
    drops[step] = {"d00", "d01", "d02", "d03"}
    scene.run(drops)
    assert scene.sum.failed
    assert not scene.sum.opened


def test_a_sparse_sum_opens_too() -> None:
    """Of twelve devices each has eight neighbours; two that drop out at different steps cost nothing."""
    scene = Scene(12, neighbours=8)
    scene.run([set(), {"d03"}, {"d08"}])
    assert scene.sum.opened, scene.sum.failed
    assert np.abs(scene.mean() - scene.true_mean()).max() < 1e-6


def test_one_masked_delta_is_noise() -> None:
    """Its numbers are others than they stand for, and others in each sum, whatever the delta is."""
    first, second = Scene(4), Scene(4)
    for scene in (first, second):
        scene.run([set(), set(), set()])
    seen = [np.frombuffer(scene.masked["d00"], ring.U32) for scene in (first, second)]
    plain = np.frombuffer(first.devices["d00"].numbers, ring.U32)
    assert not np.any(seen[0] == plain)
    assert not np.any(seen[0] == seen[1])


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_share_that_was_changed_does_not_count(kind: str) -> None:
    """It has not the digest that its dealer said: who sent it is said, and the others are enough."""
    scene = Scene(8)
    scene.run([set(), {"d04"}])
    liar = scene.told[0].device
    one = scene.devices[liar].reveal(scene.told[0].message)  # type: ignore[arg-type]
    found = {**getattr(one, kind)}
    name = next(iter(found))
    changed = {kind: {**found, name: found[name][:-1] + bytes([found[name][-1] ^ 1])}}
    lie = UnmaskShares(one.task_id, changed.get("seeds", one.seeds), changed.get("keys", one.keys))
    scene.hear(scene.sum.revealed(liar, lie))
    assert scene.liars == [liar]
    scene.silent.add(liar)
    scene.answer()
    assert scene.sum.opened
    assert np.abs(scene.mean() - scene.true_mean()).max() < 1e-6


def test_fewer_shares_open_nothing() -> None:
    """One too few raises; one too few with another's in its place is not the seed."""
    scene = Scene(6)
    scene.run([set(), {"d05"}, set()])
    standing = Standing.of(scene.facts)
    threshold = standing.threshold("d00")
    few = dict(list(standing.revealed.items())[: threshold - 1])
    standing.revealed = few
    with pytest.raises(MaskError, match="are needed"):
        list(masks_left(standing, "run.1.1"))


def test_a_dealer_that_lied_is_found_out() -> None:
    """Shares that are what it dealt, of what is not its seed or its key: the sum does not open, and says who."""
    for of_key in (False, True):
        scene = Scene(4)
        scene.devices["d01"].lie(of_key=of_key)
        scene.run([set(), set(), set()] if not of_key else [set(), set()])
        standing = Standing.of(scene.facts)
        if of_key:
            scene = Scene(5)
            scene.devices["d01"].lie(of_key=True)
            scene.run([set(), {"d01"}, set()])
            standing = Standing.of(scene.facts)
            with pytest.raises(MaskError, match="d01 dealt out is not its key"):
                key_of(standing, "d01")
        else:
            with pytest.raises(MaskError, match="d01 dealt out is not its seed"):
                seed_of(standing, "d01")


def test_who_speaks_out_of_turn_is_not_heard() -> None:
    """Shares before they are asked for, for others than the neighbours, or of who is not in the sum."""
    scene = Scene(4)
    scene.gather()
    before = len(scene.facts)
    scene.hear(scene.sum.revealed("d00", UnmaskShares("t", {}, {})))
    scene.hear(scene.sum.shared("nobody", scene.devices["d00"].deal(_peers(scene, "d00"))))
    assert len(scene.facts) == before
    assert scene.sum.standing.step is Step.SHARING


def test_two_are_no_sum() -> None:
    """However low the quorum is."""
    scene = Scene(2, least=1)
    scene.gather()
    assert "needs 3" in scene.sum.failed


def test_questions_are_asked_again() -> None:
    """Of who has not answered, after a while, and at once of who comes back; nobody else is bothered."""
    scene = Scene(4)
    scene.gather()
    scene.silent = {"d02"}
    scene.answer()
    scene.hear(scene.sum.ask_again(ASK_S / 2))
    assert not scene.told
    scene.hear(scene.sum.ask_again(ASK_S))
    assert [one.device for one in scene.told] == ["d02"]
    scene.hear(scene.sum.ask_again(ASK_S, "d02"))
    assert len(scene.told) == 2


@pytest.mark.parametrize("count", [3, 10, 30, 60, 100])
def test_the_graph_is_regular_and_mutual(count: int) -> None:
    """Each has as many neighbours as reckoned, and is theirs."""
    k = degree(count)
    found = neighbours([f"d{n}" for n in range(count)], k, _lot())
    assert {len(one) for one in found.values()} == {k}
    assert all(name in found[other] and other != name for name, others in found.items() for other in others)


def test_the_degree_is_the_least_that_holds() -> None:
    """All are neighbours where they are few; of many, far fewer are needed than there are."""
    assert [degree(count) for count in (3, 5, 20)] == [2, 4, 19]
    for count in (100, 1000, 10_000):
        k = degree(count)
        assert holds(count, k)
        assert not holds(count, k - 2)
        assert k <= MAX_PEERS
    assert degree(10_000) < 4 * degree(100)


def test_the_longest_messages_fit() -> None:
    """With as many neighbours as there may be, whose names are as long as they may be."""
    scene = Scene(3)
    scene.gather()
    peer = next(one.message for one in scene.told if isinstance(one.message, MaskPeers)).peers[0]
    names = [f"{k:064}" for k in range(MAX_PEERS)]
    peers = MaskPeers("t" * 100, tuple(dataclasses.replace(peer, device=name) for name in names))
    boxes = scene.devices["d00"].deal(_peers(scene, "d00"))
    box, digest = next(iter(boxes.boxes.values())), next(iter(boxes.digests.values()))
    dealt = dataclasses.replace(boxes, boxes=dict.fromkeys(names, box), digests=dict.fromkeys(names, digest))
    for message in (peers, dealt, MaskInbox("t", dict.fromkeys(names, box)), UnmaskCall("t", tuple(names), ())):
        assert len(encode_message(message)) + HEADER.size <= MAX_SIGNED_BYTES


def _peers(scene: Scene, name: str) -> MaskPeers:
    return next(o.message for o in scene.told if o.device == name and isinstance(o.message, MaskPeers))


def test_signers_differ() -> None:
    """The scene's devices are told apart by their identities, as real ones are."""
    assert len({device.signer.public for device in Scene(4).devices.values()}) == 4
    assert isinstance(Scene(3).devices["d00"].signer, Signer)
