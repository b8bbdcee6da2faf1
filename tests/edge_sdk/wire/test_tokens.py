"""Tokens: copied whole or not at all, and of use to nobody who only hears what is said with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.keys import KEY_BYTES, Signer
from edge_sdk.wire.tokens import PREFIX, Invitation, invite, is_invited, read_token

KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
DEVICE, STRANGER = Signer(b"d" * KEY_BYTES).public, Signer(b"s" * KEY_BYTES).public
TOPIC = "fleet/v1/up/pi"


@given(KEYS, KEYS)
def test_tokens_survive(coordinator: bytes, seed: bytes) -> None:
    """What is read is what was written."""
    invitation = Invitation(coordinator, seed)
    assert read_token(invitation.token) == invitation


@given(st.data())
def test_a_token_that_was_not_copied_whole_is_refused(data: st.DataObject) -> None:
    """A letter lost, added or mistaken for another."""
    token = Invitation(bytes(range(32)), bytes(range(32, 64))).token
    at, letter = data.draw(st.integers(0, len(token) - 2)), data.draw(st.sampled_from("aZ0-_. \u00e9"))
    rest = token[at + data.draw(st.integers(0, 1)) :]
    wrong = token[:at] + data.draw(st.sampled_from(["", letter])) + rest
    if wrong != token:
        with pytest.raises(ValueError, match="copied whole"):
            read_token(wrong)


@pytest.mark.parametrize("text", ["", PREFIX, "token", PREFIX + "A" * 91])
def test_what_is_no_token_is_refused(text: str) -> None:
    """Also where the letters are right."""
    with pytest.raises(ValueError, match="copied whole"):
        read_token(text)


def test_a_proof_is_for_one_key_under_one_name() -> None:
    """Whoever hears it cannot use it for a key or a device of its own; each invitation has another key."""
    invitation = invite(STRANGER)
    proof = invitation.proof(TOPIC, DEVICE)
    assert is_invited(invitation.key, proof, TOPIC, DEVICE)
    assert not is_invited(invitation.key, proof, TOPIC, STRANGER)
    assert not is_invited(invitation.key, proof, TOPIC + "2", DEVICE)
    assert not is_invited(invite(STRANGER).key, proof, TOPIC, DEVICE)
