"""TUF's attacks on what a device installs, https://theupdateframework.io/docs/security/, on the device's own parts.

Rollback, freeze, mix and match, endless data, wrong key, arbitrary bytes: each is declined or found out, and nothing of
it is trained on.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib

import pytest

from edge_sdk.events import (
    Event,
    FetchFailed,
    FetchManifest,
    Greet,
    Instruction,
    KeepVersion,
    ManifestHere,
    Say,
    Send,
)
from edge_sdk.fetcher import Fetcher
from edge_sdk.identity import Identity
from edge_sdk.line import RENEW_S, Line
from edge_sdk.phases import Phase
from edge_sdk.session import Session
from edge_sdk.store import DeviceStore
from edge_sdk.wire.blobs import Blob, blob_of
from edge_sdk.wire.channel import Channel, nonce_of
from edge_sdk.wire.chunks import RESTARTS
from edge_sdk.wire.errors import SignatureError, TooLargeError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.manifest import MAX_MANIFEST_BYTES, encode_manifest
from edge_sdk.wire.messages import (
    Chunk,
    DeclineReason,
    Message,
    Task,
    TaskCancel,
    TaskDeclined,
    TaskOffer,
    Welcome,
    encode_message,
)
from edge_sdk.wire.signed import MAX_SIGNED_BYTES, read_envelope
from edge_sdk.wire.topics import Topics
from tests.edge_sdk.samples import make_hello, make_manifest, make_task

TOPICS, COORDINATOR = Topics("fleet"), Signer(b"c" * 32)
UP, DOWN = TOPICS.up("pi"), TOPICS.down("pi")
NEVER_S = 1e6


class Device:
    """A session with a fast line to its coordinator, whose clock is 500 s behind."""

    BEHIND_S = 500.0

    def __init__(self, heard_version: int = 0) -> None:
        self.now_s = 1000.0
        self.session = Session(dataclasses.replace(make_hello(), heard_version=heard_version), (), self.now_s)
        self.tell(Welcome("coordinator", self.now_s - self.BEHIND_S))

    def tell(self, event: Event) -> list[Instruction]:
        """What is to be done because of it."""
        return self.session.handle(event, self.now_s)

    def offer(self, task: Task, version: int, under_way_s: float = 0.0) -> list[Instruction]:
        """The coordinator offers now, and it comes after a while."""
        offer = TaskOffer(task, version, self.now_s - self.BEHIND_S)
        self.now_s += under_way_s
        return self.tell(offer)


def answers(asked: list[Instruction]) -> list[Message]:
    """What is said."""
    return [one.message for one in asked if isinstance(one, Send)]


def declined(asked: list[Instruction]) -> DeclineReason:
    """The reason, if that is all that is done beside a line for people."""
    assert not [one for one in asked if isinstance(one, (FetchManifest, KeepVersion))]
    (answer,) = answers(asked)
    assert isinstance(answer, TaskDeclined)
    return answer.reason


def not_taken(asked: list[Instruction]) -> bool:
    """Whether nothing follows but a greeting, and a line for people."""
    return [one for one in asked if not isinstance(one, Say)] == [Greet()]


# ---- rollback


def test_an_offer_of_a_lower_version_is_declined() -> None:
    """Equal ones are repetitions, higher ones are new; nothing below the highest is ever taken, nor fetched."""
    device = Device(heard_version=5)
    assert declined(device.offer(make_task("old"), 4)) is DeclineReason.ROLLED_BACK
    assert device.session.phase is Phase.IDLE
    assert not [one for one in device.offer(make_task("same"), 5) if isinstance(one, KeepVersion)]
    device.tell(FetchFailed("same", DeclineReason.UNAVAILABLE, ""))
    assert KeepVersion(7) in device.offer(make_task("new"), 7)
    device.tell(FetchFailed("new", DeclineReason.UNAVAILABLE, ""))
    assert declined(device.offer(make_task("again"), 6)) is DeclineReason.ROLLED_BACK


def test_a_version_outlives_the_process(tmp_path: pathlib.Path) -> None:
    """It is on disk with the key that it is of; another coordinator's versions are its own."""
    identity = Identity(tmp_path)
    identity.pin(COORDINATOR.public)
    identity.keep_version(7)
    assert Identity(tmp_path).version == 7
    identity.pin(Signer(bytes(32)).public)
    assert Identity(tmp_path).version == 0


# ---- freeze


@pytest.mark.parametrize("quiet_s", [0.0, 3600.0])
def test_an_offer_that_was_held_back_expires(quiet_s: float) -> None:
    """With the task's deadline, by two clocks that nobody set; in time, only what is left of the deadline counts."""
    device, task = Device(), make_task("t", deadline_s=60.0)
    device.now_s += quiet_s
    assert not_taken(device.offer(task, 1, under_way_s=60.0))
    assert [one for one in device.offer(task, 1, under_way_s=50.0) if isinstance(one, FetchManifest)]
    assert device.session._current is not None
    assert device.session._current.deadline_s == pytest.approx(device.now_s + 10.0)


def test_a_welcome_that_was_held_back_hides_nothing() -> None:
    """Offers are measured against the fastest message since, and a greeting that is repeated has another nonce."""
    device, task = Device(), make_task("t", deadline_s=60.0)
    slow = Welcome("coordinator", device.now_s - device.BEHIND_S)
    device.now_s += 40.0
    device.tell(slow)
    device.offer(make_task("fast"), 1)
    device.tell(FetchFailed("fast", DeclineReason.UNAVAILABLE, ""))
    assert not_taken(device.offer(task, 1, under_way_s=60.0))


def test_a_coordinator_that_was_suspended_is_greeted_anew() -> None:
    """Its clock stood still, so its offers look late; after the next welcome they do not."""
    device, task = Device(), make_task("t", deadline_s=60.0)
    device.now_s += 3600.0
    sent_s = device.now_s - device.BEHIND_S - 3600.0
    assert not_taken(device.tell(TaskOffer(task, 1, sent_s)))
    device.tell(Welcome("coordinator", sent_s))
    assert [one for one in device.tell(TaskOffer(task, 1, sent_s)) if isinstance(one, FetchManifest)]


def test_a_conversation_does_not_last_for_ever(tmp_path: pathlib.Path) -> None:
    """Clocks drift: after a while the device greets anew; and what answers an earlier greeting is refused."""
    line = Line(Identity(tmp_path), TOPICS, "pi", 0)
    line.begin(0.0)
    greetings = [line.greeting(0.0), line.greeting(100.0)]
    channels = [read_envelope(payload).channel for payload in greetings if payload is not None]
    late, answer = (welcome(nonce_of(channel)) for channel in channels)
    with pytest.raises(SignatureError, match="another conversation"):
        line.open(DOWN, late, 100.0)
    line.open(DOWN, answer, 100.0)
    assert line.greeting(100.0 + RENEW_S - 1) is None
    assert line.greeting(100.0 + RENEW_S) is not None


def welcome(nonce: bytes) -> bytes:
    """The coordinator's answer to a greeting."""
    return Channel(COORDINATOR, b"", nonce + bytes(16), DOWN, UP).seal(Welcome("coordinator", 0.0))


# ---- wrong key


def test_a_stranger_cannot_offer(tmp_path: pathlib.Path) -> None:
    """In the right conversation, with the right number, and signed: with another key than the coordinator's."""
    identity = Identity(tmp_path)
    identity.pin(COORDINATOR.public)
    line = Line(identity, TOPICS, "pi", 0)
    line.begin(0.0)
    greeting = line.greeting(0.0)
    assert greeting is not None
    nonce = nonce_of(read_envelope(greeting).channel)
    line.open(DOWN, welcome(nonce), 0.0)
    for signer, fine in ((Signer(b"s" * 32), False), (COORDINATOR, True)):
        payload = Channel(signer, b"", nonce + bytes(16), DOWN, UP, said=1).seal(TaskOffer(make_task(), 1, 0.0))
        if fine:
            assert isinstance(line.open(DOWN, payload, 0.0), TaskOffer)
        else:
            with pytest.raises(SignatureError, match="signed with the key"):
                line.open(DOWN, payload, 0.0)


# ---- mix and match, endless data, arbitrary bytes


MANIFEST = encode_manifest(make_manifest())
OTHER = encode_manifest(make_manifest(process_bytes=1))


def fetching(folder: pathlib.Path, *retained: bytes) -> tuple[Fetcher, FetchFailed | ManifestHere | None]:
    """A fetcher that wants MANIFEST, after it heard these as if they were that one."""
    fetcher = Fetcher(DeviceStore(folder, 10**9, lambda _folder: 10**12), 0)
    for data in retained:
        fetcher.hold(blob_of(MANIFEST).sha256, data)
    outcome = fetcher.begin(FetchManifest(make_task(artifact=blob_of(MANIFEST))))
    assert not isinstance(outcome, FetchFailed)
    return fetcher, outcome if isinstance(outcome, ManifestHere) else None


def test_only_the_manifest_that_was_offered_is_used(tmp_path: pathlib.Path) -> None:
    """Another good one, a long one, or junk in its place on the retained topic is as if it had not come."""
    wrong = (OTHER, MANIFEST + b"\0", bytes(MAX_MANIFEST_BYTES + 1), b"junk")
    _fetcher, outcome = fetching(tmp_path / "wrong", *wrong)
    assert outcome is None
    _fetcher, outcome = fetching(tmp_path / "right", *wrong, MANIFEST)
    assert isinstance(outcome, ManifestHere)
    assert outcome.manifest == make_manifest()


def chunk(blob: Blob, data: bytes, index: int = 0) -> Chunk:
    """A piece that claims to be of a blob."""
    return Chunk(blob.sha256, 256 * 1024, index, zlib.crc32(data), data)


@pytest.mark.parametrize(
    "data",
    [OTHER.ljust(len(MANIFEST), b"\0")[: len(MANIFEST)], bytes(len(MANIFEST)), MANIFEST[:-1] + b"\1"],
    ids=["another artifact's", "zeros", "last byte"],
)
def test_bytes_of_another_file_are_found_out(tmp_path: pathlib.Path, data: bytes) -> None:
    """Of the right length, however often: given up after a few times, and nothing of it is in the store."""
    fetcher, _outcome = fetching(tmp_path)
    outcome = None
    for k in range(RESTARTS + 1):
        fetcher.requests(k * NEVER_S)
        outcome = fetcher.take(chunk(blob_of(MANIFEST), data), k * NEVER_S)
    assert isinstance(outcome, FetchFailed)
    assert outcome.reason is DeclineReason.UNAVAILABLE
    assert not list((tmp_path / "blobs").glob("*"))


def test_data_has_an_end(tmp_path: pathlib.Path) -> None:
    """No byte more than was promised is kept, whatever comes; nor is a longer message looked at."""
    fetcher, _outcome = fetching(tmp_path)
    fetcher.requests(0.0)
    for index in range(100):
        assert fetcher.take(chunk(blob_of(MANIFEST), bytes(256 * 1024), index), 0.0) is None
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept <= 2 * len(MANIFEST)
    with pytest.raises(TooLargeError):
        read_envelope(b"\xc1" + bytes(MAX_SIGNED_BYTES))


def test_a_cancellation_is_signed_as_well(tmp_path: pathlib.Path) -> None:
    """Nothing but chunks may come without a signature."""
    line = Line(Identity(tmp_path), TOPICS, "pi", 0)
    with pytest.raises(SignatureError, match="nobody signed"):
        line.open(DOWN, encode_message(TaskCancel("t", "")), 0.0)
