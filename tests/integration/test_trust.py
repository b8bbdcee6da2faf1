"""Somebody on the same broker who hears everything, says it again, and speaks for others: a real Mosquitto."""

from __future__ import annotations

import pathlib
import re
import shutil
import threading
from dataclasses import dataclass, field

import pytest

from coordinator.config import load_config
from coordinator.pace import Pace
from coordinator.places import artifact_folder, received_folder
from coordinator.publisher import Publisher
from coordinator.registry import Registry
from coordinator.round_states import State
from edge_sdk.identity import Identity
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of
from edge_sdk.wire.channel import greeting_channel, new_nonce, nonce_of
from edge_sdk.wire.messages import (
    CHUNK_BYTES,
    Announcement,
    ChunkRequest,
    Greeting,
    Message,
    NotWelcome,
    Receipt,
    RefusalReason,
    ResultOffer,
    TaskCancel,
    TaskOffer,
    TransferRefused,
    Unwelcome,
    decode_message,
    encode_message,
)
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.signed import NO_CHANNEL, is_envelope, read_envelope, seal
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import MemoryBroker, Received, Will
from tests.brokers import Mosquitto
from tests.integration.conftest import ROUNDS, Tiny, assert_counted_once, wait_until
from tests.integration.test_in_memory import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TOPICS = Topics("test")
UP, DOWN = TOPICS.up("a"), TOPICS.down("a")


@dataclass(frozen=True, slots=True)
class OverMosquitto:
    """Connects the fleet to a real broker."""

    url: str

    def connect(self, client_id: str, will: Will | None = None) -> MqttTransport:
        """A client."""
        return MqttTransport(self.url, client_id, will)


@dataclass(slots=True)
class Mallory:
    """Says again, once, whatever is said; under a key of her own she is the device a, and its coordinator."""

    url: str
    identity: Identity
    nonce: bytes = field(default_factory=new_nonce)
    answers: list[Message] = field(default_factory=list)
    replayed: int = 0
    forged: int = 0
    _seen: set[tuple[str, bytes]] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    def live(self) -> None:
        """Until it is over."""
        transport = MqttTransport(self.url, "mallory")
        transport.subscribe("test/#")
        while not self._over.is_set():
            event = transport.receive(0.1)
            if isinstance(event, Received) and (event.topic, event.payload) not in self._seen:
                self._hear(event)
                for topic, payload in [(event.topic, event.payload), *self._forgeries(event)]:
                    self._seen.add((topic, payload))
                    transport.publish(topic, payload)
                self.replayed += 1
        transport.close()

    def end(self) -> None:
        """Enough."""
        self._over.set()

    def _hear(self, event: Received) -> None:
        if event.topic == DOWN and is_envelope(event.payload):
            envelope = read_envelope(event.payload)
            if nonce_of(envelope.channel) == self.nonce:
                self.answers.append(decode_message(envelope.body))

    def _forgeries(self, event: Received) -> list[tuple[str, bytes]]:
        """For a message of or to the device: others, in the same conversation, that would do harm if they counted."""
        if event.topic not in {UP, DOWN} or not is_envelope(event.payload):
            return []
        envelope = read_envelope(event.payload)
        message, channel = decode_message(envelope.body), envelope.channel
        evil: list[tuple[str, bytes, Message]] = [(TOPICS.announcement, NO_CHANNEL, Announcement("mallory", 1))]
        if isinstance(message, TaskOffer):
            task_id = message.task.task_id
            evil.append((DOWN, channel, TaskCancel(task_id, "mallory")))
            evil.append((UP, greeting_channel(self.nonce), Greeting("a")))
        elif isinstance(message, ResultOffer):
            task_id = message.task_id
            evil.append((DOWN, channel, Receipt(task_id, accepted=True, reason=None, detail="mallory")))
            evil.append((UP, channel, ResultOffer(task_id, blob_of(b"mallory"), message.report)))
        self.forged += len(evil) - 1
        signer, said = self.identity.signer, [(topic, nonces, encode_message(one)) for topic, nonces, one in evil]
        signed = [(topic, seal(signer, topic, nonces, 99, body)) for topic, nonces, body in said]
        return signed + [(topic, body) for topic, _nonces, body in said]


def test_whoever_hears_everything_can_do_nothing(
    tmp_path: pathlib.Path, tiny: Tiny, mosquitto: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is said twice, and a stranger's key signs cancellations, receipts and results in the device's name and
    the coordinator's: the run goes on as if nobody had, and the stranger is told that the name is another key's.
    """
    fleet = Fleet(tmp_path, tiny, OverMosquitto(mosquitto.url))
    mallory = Mallory(mosquitto.url, Identity(tmp_path / "mallory"))
    with fleet.device("a"):
        thread = threading.Thread(target=mallory.live)
        rounds = {"count": ROUNDS, "devices": 1, "deadline_s": 60.0, "wait_s": 60.0}
        first = Fleet(tmp_path, tiny, OverMosquitto(mosquitto.url))
        assert first.serve(rounds={**rounds, "count": 1}) is State.DONE
        thread.start()
        assert first.serve(rounds=rounds) is State.DONE
        mallory.end()
        thread.join()
    history, said = fleet.history(), capsys.readouterr().out.replace("\n", " ")
    assert_counted_once(history)
    assert [row.device for row in history.results] == ["a"] * ROUNDS
    assert mallory.replayed > ROUNDS
    assert mallory.forged >= 3 * (ROUNDS - 1)
    assert {isinstance(answer, NotWelcome) and answer.reason for answer in mallory.answers} == {Unwelcome.OTHER_KEY}
    words = " ".join(fleet.words["a"])
    assert "came before" in said
    assert "signed with the key" in said
    assert "signed with the key" in words
    assert "nobody signed" in words
    assert "mallory" not in words


def test_a_fleet_with_tokens(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Two devices that were invited take part, and one that was not does not; one that is revoked does so no more."""
    trust = {"enrolment": "token", "folder": str(tmp_path / "trust")}
    with Registry(tmp_path / "trust") as registry:
        tokens = {name: registry.invite(name) for name in "ab"}
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    rounds = {"count": 1, "devices": 2, "quorum": 2, "deadline_s": 60.0, "wait_s": 60.0}
    with fleet.device("a", token=tokens["a"]), fleet.device("b", token=tokens["b"]), fleet.device("c"):
        assert fleet.serve(trust=trust, rounds=rounds) is State.DONE
        with Registry(tmp_path / "trust") as registry:
            assert registry.revoke("b") is not None
        assert fleet.serve(trust=trust, rounds={**rounds, "count": 2, "devices": 1, "quorum": 1}) is State.DONE
        for name, why in (("b", "revoked"), ("c", "unknown")):
            wait_until(lambda: any(f"not welcome, {why}" in line for line in fleet.words[name]), f"{name} was told")  # noqa: B023
    results = fleet.history().results
    assert sorted((row.round, row.device) for row in results) == [(1, "a"), (1, "b"), (2, "a")]
    config = load_config(tmp_path / "coordinator.toml")
    publisher = Publisher(BlobStore(artifact_folder(config)), Pace())
    for row in results:
        wanted = ChunkRequest(row.sha256, CHUNK_BYTES, 0, b"\x01", 1)
        assert BlobStore(received_folder(config)).has(Blob(row.sha256, row.size_bytes))
        assert publisher.asked("a", wanted, 0.0) == TransferRefused(row.sha256, RefusalReason.UNKNOWN_BLOB)


def test_a_coordinator_from_an_old_backup(
    tmp_path: pathlib.Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its device hears it, declines what it offers, and says why; with a person's word it goes on from the backup."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    rounds = {"count": 1, "devices": 1, "quorum": 1, "attempts": 1, "deadline_s": 60.0, "wait_s": 0.0}
    with fleet.device("a"):
        assert fleet.serve(rounds=rounds) is State.DONE
        shutil.copytree(tmp_path / "out", tmp_path / "backup")
        assert fleet.serve(rounds={**rounds, "count": 3}) is State.DONE
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "backup").rename(tmp_path / "out")
        assert fleet.serve(rounds={**rounds, "count": 3}) is State.GAVE_UP
        said = " ".join(capsys.readouterr().out.split())
        assert re.search("it has taken version 3 of our offers, here it is [12], and it takes no lower one", said)
        assert any("is declined, rolled-back: version 2, this device has taken 3" in line for line in fleet.words["a"])
        assert fleet.serve(rounds={**rounds, "count": 3}, restored=True) is State.DONE
    history = fleet.history()
    assert [adapter.version for adapter in history.adapters] == [0, 1, 2, 3]
    assert [(row.round, row.device) for row in history.results] == [(1, "a"), (2, "a"), (3, "a")]
