"""What a device says in a secure sum, and what it never says, whoever asks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.secure import member
from edge_sdk.secure.member import Member
from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.secure.keys import digest_of, sign_keys
from edge_sdk.wire.secure.said import MaskInbox, MaskPeers, Peer, UnmaskCall
from edge_sdk.wire.secure.shamir import join

NAMES = tuple("abcde")
SIGNERS = {name: Signer(bytes([k] * 32)) for k, name in enumerate(NAMES)}


def begun(sum_id: str = "s") -> dict[str, Member]:
    """All of them, with their keys."""
    return {name: member.begin(f"task.{name}", sum_id, name, SIGNERS[name]) for name in NAMES}


def peers_of(name: str, all_: dict[str, Member]) -> MaskPeers:
    """Everybody else."""
    others = tuple(Peer.of(o, SIGNERS[o].public, all_[o].keys) for o in NAMES if o != name)
    return MaskPeers(f"task.{name}", others)


def dealt(all_: dict[str, Member]) -> dict[str, Member]:
    """With their secrets dealt out, and each with its inbox."""
    for name in NAMES:
        all_[name], _ = member.deal(all_[name], peers_of(name, all_))
    return {name: member.receive(all_[name], inbox_of(name, all_)) for name in NAMES}


def inbox_of(name: str, all_: dict[str, Member]) -> MaskInbox:
    """The boxes of all others."""
    said = {other: all_[other].said for other in NAMES if other != name}
    return MaskInbox(f"task.{name}", {other: one.boxes[name] for other, one in said.items() if one is not None})


def call(name: str, dropped: str = "") -> UnmaskCall:
    """For everybody else's, of whom these dropped out."""
    alive = tuple(other for other in NAMES if other not in {name, *dropped})
    return UnmaskCall(f"task.{name}", alive, tuple(other for other in dropped if other != name))


def test_what_was_dealt_out_comes_back() -> None:
    """Neighbours' shares of a device that is in the sum open its seed, of one that is not, its key."""
    all_ = dealt(begun())
    found = {name: member.reveal(all_[name], call(name, "e"))[1] for name in "abcd"}
    points = {name: k for k, name in enumerate([n for n in NAMES if n != "e"], start=1)}
    assert join({points[name]: found[name].keys["e"] for name in "abc"}) == all_["e"].mask_private
    points = {name: k for k, name in enumerate([n for n in NAMES if n != "a"], start=1)}
    assert join({points[name]: found[name].seeds["a"] for name in "bcd"}) == all_["a"].seed


def test_the_digests_tell_each_share() -> None:
    """What is given up later is known by what was said when it was dealt."""
    all_ = dealt(begun())
    given_up = member.reveal(all_["a"], call("a", "e"))[1]
    said = all_["b"].said, all_["e"].said
    assert said[0] is not None
    assert said[1] is not None
    assert digest_of(given_up.seeds["b"]) == said[0].digests["a"][:32]
    assert digest_of(given_up.keys["e"]) == said[1].digests["a"][32:]


STORY = st.lists(st.sampled_from(["alive", "dropped", ""]), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(stories=st.lists(STORY, min_size=1, max_size=5))
def test_a_device_never_gives_up_both_shares_of_a_neighbour(stories: list[list[str]]) -> None:
    """However often and however a coordinator asks: of each neighbour one kind at most ever leaves the device."""
    one, seeds, keys = dealt(begun())["a"], set[str](), set[str]()
    for story in stories:
        told = dict(zip(NAMES[1:], story, strict=True))
        alive, dropped = (tuple(n for n in told if told[n] == kind) for kind in ("alive", "dropped"))
        with contextlib.suppress(MaskError):
            one, said = member.reveal(one, UnmaskCall("task.a", alive, dropped))
            seeds |= set(said.seeds)
            keys |= set(said.keys)
    assert not seeds & keys


def test_a_name_in_both_lists_is_refused() -> None:
    """Within one call, too."""
    one = dealt(begun())["a"]
    with pytest.raises(MaskError, match="is in the sum, and is not"):
        member.reveal(one, UnmaskCall("task.a", ("b", "c", "d"), ("b",)))


def test_the_same_question_has_the_same_answer() -> None:
    """Whatever comes again is said again, in the same words: nothing new is dealt out or given up."""
    all_ = begun()
    one, said = member.deal(all_["a"], peers_of("a", all_))
    assert member.deal(one, peers_of("a", all_)) == (one, said)
    all_ = dealt(all_)
    one = all_["b"]
    assert member.receive(one, inbox_of("b", all_)) == one
    after, given_up = member.reveal(one, call("b"))
    assert member.reveal(after, call("b")) == (after, given_up)
    assert member.masks(one) == member.masks(after)


def without(names: str) -> Callable[[MaskPeers], MaskPeers]:
    """Fewer neighbours."""
    return lambda said: dataclasses.replace(said, peers=tuple(p for p in said.peers if p.device not in names))


def invented(said: MaskPeers) -> MaskPeers:
    """A neighbour's keys are another's."""
    first, second, *rest = said.peers
    return dataclasses.replace(said, peers=(dataclasses.replace(first, mask_key=second.mask_key), second, *rest))


def of_another_sum(said: MaskPeers) -> MaskPeers:
    """A neighbour's keys are those of a sum before."""
    first, *rest = said.peers
    signature = sign_keys(SIGNERS[first.device], "other", first.device, first.signed)
    return dataclasses.replace(said, peers=(dataclasses.replace(first, signature=signature), *rest))


def one_with_two_names(said: MaskPeers) -> MaskPeers:
    """Somebody is two neighbours."""
    first, second, *rest = said.peers
    signer = SIGNERS[first.device]
    signature = sign_keys(signer, "s", second.device, second.signed)
    twin = dataclasses.replace(second, identity=signer.public, signature=signature)
    return dataclasses.replace(said, peers=(first, twin, *rest))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("bcd"), "1 neighbours"),
        (invented, "has not signed"),
        (of_another_sum, "has not signed"),
        (one_with_two_names, "one identity"),
        (lambda said: dataclasses.replace(said, peers=(*said.peers, said.peers[0])), "twice"),
        (lambda said: dataclasses.replace(said, peers=said.peers[::-1]), "another order"),
    ],
)
def test_neighbours_that_cannot_be(change: Callable[[MaskPeers], MaskPeers], why: str) -> None:
    """Too few, not signed for this sum, or somebody more than once: nothing is dealt out."""
    all_ = begun()
    with pytest.raises(MaskError, match=why):
        member.deal(all_["a"], change(peers_of("a", all_)))


def test_a_roster_knows_who_there_is() -> None:
    """A device whose owner has written the fleet's identities down deals nothing out to who is invented."""
    all_ = begun()
    roster = {name: SIGNERS[name].public for name in NAMES}
    assert member.deal(all_["a"], peers_of("a", all_), roster)[1].boxes
    for lie in ({**roster, "c": SIGNERS["a"].public}, {n: key for n, key in roster.items() if n != "d"}):
        with pytest.raises(MaskError, match="not on the roster"):
            member.deal(all_["a"], peers_of("a", all_), lie)


def test_other_words_later_are_refused() -> None:
    """Other neighbours, another inbox, another call: what was agreed on stands."""
    all_ = begun()
    one, _ = member.deal(all_["a"], peers_of("a", all_))
    with pytest.raises(MaskError, match="other neighbours"):
        member.deal(one, without("b")(peers_of("a", all_)))
    all_ = dealt(all_)
    inbox = inbox_of("a", all_)
    fewer = MaskInbox("task.a", {name: box for name, box in inbox.boxes.items() if name != "b"})
    with pytest.raises(MaskError, match="another inbox"):
        member.receive(all_["a"], fewer)
    after, _ = member.reveal(all_["a"], call("a", "e"))
    with pytest.raises(MaskError, match="another call"):
        member.reveal(after, call("a", "d"))


def test_too_few_are_no_cover() -> None:
    """An inbox, or a call, with fewer neighbours than open a secret."""
    all_ = begun()
    for name in NAMES:
        all_[name], _ = member.deal(all_[name], peers_of(name, all_))
    boxes = dict(list(inbox_of("a", all_).boxes.items())[:2])
    with pytest.raises(MaskError, match="3 are needed"):
        member.receive(all_["a"], MaskInbox("task.a", boxes))
    one = member.receive(all_["a"], inbox_of("a", all_))
    with pytest.raises(MaskError, match="3 are needed"):
        member.reveal(one, call("a", "de"))
    with pytest.raises(MaskError, match="not masked with"):
        member.reveal(one, UnmaskCall("task.a", ("b", "c", "d", "z"), ()))


def test_a_box_that_does_not_open_holds_nothing() -> None:
    """The device goes on, masks with who sent it, and has no share of theirs to give up."""
    all_ = begun()
    for name in NAMES:
        all_[name], _ = member.deal(all_[name], peers_of(name, all_))
    inbox = inbox_of("a", all_)
    one = member.receive(all_["a"], MaskInbox("task.a", {**inbox.boxes, "c": inbox.boxes["b"]}))
    assert len(member.masks(one)) == 5
    _, said = member.reveal(one, call("a"))
    assert set(said.seeds) == {"b", "d", "e"}


def test_masks_before_the_inbox_are_misuse() -> None:
    """Nothing is known to mask with."""
    with pytest.raises(ValueError, match="before"):
        member.masks(begun()["a"])
