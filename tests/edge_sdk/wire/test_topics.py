"""A topic that is built is read back; no name reaches into another device's topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.topics import DEVICE, Topics, check_device

NAMES = st.from_regex(DEVICE, fullmatch=True)
BAD_NAMES = ["", "a/b", "..", "+", "#", "a b", "-a", ".a", "a\n", "a" * 65, "ä", "$SYS"]


@given(NAMES, NAMES)
def test_a_device_is_found_again_in_its_topics(fleet: str, device: str) -> None:
    """Whatever the names, the receiver of a topic learns who it is about."""
    topics = Topics(fleet)
    for topic in (topics.presence(device), topics.up(device), topics.down(device), topics.manifest("0" * 64)):
        assert topics.last_level(topic) in {device, "0" * 64}


@given(NAMES, NAMES, NAMES)
def test_devices_share_no_topic(fleet: str, a: str, b: str) -> None:
    """Two devices have the same topic only where they are the same device."""
    topics = Topics(fleet)
    mine = {topics.presence(a), topics.up(a), topics.down(a)}
    theirs = {topics.presence(b), topics.up(b), topics.down(b)}
    assert len(mine) == len(theirs) == 3
    assert bool(mine & theirs) == (a == b)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_mean_another_topic_are_refused(name: str) -> None:
    """Wildcards, slashes, blanks and paths are no names, of a fleet or of a device."""
    with pytest.raises(ValueError, match="is no fleet name"):
        Topics(name)
    with pytest.raises(ValueError, match="is no device name"):
        check_device(name)
    if name != "+":  # all devices, in a subscription
        with pytest.raises(ValueError, match="is no device name"):
            Topics("fleet").up(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "pi",
        "fleet/v1/pi",
        "fleet/v1/up/",
        "fleet/v1/up/+",
        "fleet/v1/up/a/b",
        "fleet/v1/sideways/pi",
        "fleet/v2/up/pi",
        "other/v1/up/pi",
        "fleet/v1/announcement",
        "x" * 10_000,
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    """What has another shape, another version or another fleet is a DecodeError, in a short line."""
    with pytest.raises(DecodeError) as caught:
        Topics("fleet").last_level(topic)
    assert len(str(caught.value)) < 200


def test_wildcards_are_for_subscriptions() -> None:
    """`+` in place of a device stands for all of them."""
    assert Topics("f").presence("+") == "f/v1/presence/+"
    assert Topics("f").announcement == "f/v1/announcement"
