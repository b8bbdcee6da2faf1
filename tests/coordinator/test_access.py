"""A device touches its own topics alone: promise P13, on every broker, in both directions."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from coordinator import fleet_broker
from coordinator.access import covers, mosquitto_acl, rights
from edge_sdk.wire.endpoint import TlsFiles, context
from edge_sdk.wire.topics import COORDINATOR
from edge_sdk.wire.transport import matches
from tests.brokers import Amqtt, BrokerProcess, FleetMosquitto, Mosquitto

PATIENCE_S = 30.0
FLEET, OTHER = "garden", "park"
ANNOUNCEMENT, MANIFEST = f"{FLEET}/v1/announcement", f"{FLEET}/v1/manifest/{'ab' * 32}"
EVERYBODY = f"{FLEET}/v1/all/{'ab' * 32}"
NAMES = (COORDINATOR, "a", "b")
# Who may publish where, and who hears it: everything else must be silence.
OPEN = {
    (COORDINATOR, ANNOUNCEMENT): set(NAMES),
    (COORDINATOR, MANIFEST): set(NAMES),
    (COORDINATOR, EVERYBODY): set(NAMES),
    **{(COORDINATOR, f"{FLEET}/v1/down/{name}"): {name} for name in ("a", "b")},
    **{(name, f"{FLEET}/v1/{kind}/{name}"): {COORDINATOR} for kind in ("up", "presence") for name in ("a", "b")},
}
TOPICS = sorted({topic for _name, topic in OPEN})
FOREIGN = [f"{OTHER}/v1/down/a", f"{FLEET}/v1/down/a/x", f"{FLEET}/v2/up/a", f"{FLEET}/v1/up/@coordinator", "x"]
# What a curious client asks for: its own, others', and every wildcard that holds others'.
CURIOUS = ["#", "+/#", "+/+/+/+", f"{FLEET}/#", f"{FLEET}/v1/#", f"{FLEET}/v1/+/+", f"{FLEET}/+/down/#", "$SYS/#"]
CURIOUS += [f"{FLEET}/v1/{kind}/{name}" for kind in ("up", "down", "presence") for name in ("+", "#", "a", "b")]
CURIOUS += [
    ANNOUNCEMENT,
    f"{FLEET}/v1/manifest/+",
    f"{FLEET}/v1/all/+",
    f"$share/us/{FLEET}/v1/up/+",
    f"$share/us/{FLEET}/v1/down/+",
]


@dataclasses.dataclass(slots=True)
class Party:
    """A client without any manners; the network thread is paho's."""

    client: Client
    answers: dict[int, threading.Event] = dataclasses.field(default_factory=dict)
    heard: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    connected: threading.Event = dataclasses.field(default_factory=threading.Event)
    refused: list[str] = dataclasses.field(default_factory=list)

    def ask_for(self, patterns: list[str]) -> None:
        """Subscribe to each, granted or not."""
        for pattern in patterns:
            _result, mid = self.client.subscribe(pattern, 1)
            assert mid is not None
            assert self.answers.setdefault(mid, threading.Event()).wait(PATIENCE_S)

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, and wait until the broker has it, or has dropped it."""
        self.client.publish(topic, payload, 1, retain).wait_for_publish(PATIENCE_S)


@dataclasses.dataclass(slots=True)
class Door:
    """A broker and how one of a name comes to it."""

    broker: BrokerProcess
    files: Callable[[str], TlsFiles] | None
    protocol: MQTTProtocolVersion
    parties: list[Party] = dataclasses.field(default_factory=list)

    def enter(self, name: str, *, will: tuple[str, bytes] | None = None, client_id: str = "") -> Party:
        """A connected client; `refused` says so where it was not let in."""
        client_id = client_id or f"{name}-{len(self.parties)}"
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=self.protocol, reconnect_on_failure=False)
        party = Party(client)
        if self.files is not None:
            client.tls_set_context(context(self.files(name)))
        client.username_pw_set(name)
        if will is not None:
            client.will_set(*will, 1, retain=True)

        def on_connect(_client: Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
            if reason.is_failure:
                party.refused.append(str(reason))
            party.connected.set()

        client.on_connect = on_connect
        client.on_subscribe = lambda _c, _d, mid, _r, _p: party.answers.setdefault(mid, threading.Event()).set()
        client.on_message = lambda _c, _d, message: party.heard.append((message.topic, bytes(message.payload)))
        client.connect(self.broker.host, self.broker.port)
        client.loop_start()
        assert party.connected.wait(PATIENCE_S)
        self.parties.append(party)
        return party


def all_is_said(parties: dict[str, Party]) -> None:
    """Wait until whatever was under way has come: a last word to each is behind it in its queue."""
    for name, party in parties.items():
        if name == COORDINATOR:
            party.ask_for([f"{FLEET}/v1/up/+"])
            parties["a"].say(f"{FLEET}/v1/up/a", b"last")
        else:
            party.ask_for([f"{FLEET}/v1/down/{name}"])
            parties[COORDINATOR].say(f"{FLEET}/v1/down/{name}", b"last")
        _until(lambda party=party: b"last" in {payload for _topic, payload in party.heard})  # type: ignore[misc]


def _until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if true():
            return
        waiting.wait(0.02)
    pytest.fail(f"not in {PATIENCE_S:.0f} s")


@pytest.fixture(scope="module", params=["mosquitto, certificates", "mosquitto, 3.1.1", "mosquitto, 5", "amqtt, 3.1.1"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Mosquitto as `fedpeat broker init` makes it; both brokers as the coordinator starts them on loopback."""
    folder = tmp_path_factory.mktemp("broker")
    protocol = MQTTProtocolVersion.MQTTv5 if request.param.endswith("5") else MQTTProtocolVersion.MQTTv311
    files: Callable[[str], TlsFiles] | None = None
    broker: BrokerProcess
    if "certificates" in request.param:
        made = FleetMosquitto(folder / "fleet")
        fleet_broker.init(made.folder, FLEET, [made.host], ["a", "b"], port=made.port, days=10, at="")
        files = lambda name: made.files("coordinator" if name == COORDINATOR else f"devices/{name}")  # noqa: E731
        broker = made
    elif "amqtt" in request.param:
        broker = Amqtt(folder, fleet=FLEET)
    else:
        (folder / "acl").write_text(mosquitto_acl(FLEET))
        broker = Mosquitto(folder, lines=f"allow_anonymous true\nacl_file {folder / 'acl'}\n")
    broker.start()
    yield Door(broker, files, protocol)
    broker.kill()


@pytest.fixture
def door(house: Door) -> Iterator[Door]:
    """The broker, for one test; who entered leaves."""
    yield house
    for party in house.parties:
        party.client.disconnect()
        party.client.loop_stop()
    house.parties.clear()


def test_nobody_hears_or_says_more_than_its_own(door: Door) -> None:
    """The matrix: everybody publishes everywhere, everybody has asked for everything, by name and by wildcard."""
    parties = {name: door.enter(name) for name in NAMES}
    for party in parties.values():
        party.ask_for(CURIOUS + TOPICS + FOREIGN)
    for name, topic in itertools.product(NAMES, TOPICS + FOREIGN):
        if topic.endswith(name) and topic in FOREIGN:
            continue  # Mosquitto's patterns are for the coordinator, too: what it tells itself is nobody else's
        parties[name].say(topic, f"{name} to {topic}".encode())
    all_is_said(parties)
    for name, party in parties.items():
        expected = {(topic, f"{who} to {topic}".encode()) for (who, topic), to in OPEN.items() if name in to}
        assert {one for one in party.heard if one[1] != b"last"} == expected, name


def test_what_is_retained_is_given_to_those_alone_who_may_read_it(door: Door) -> None:
    """One who comes later, and asks for all, gets no other's presence and task; nor what b retained there."""
    before = {name: door.enter(name) for name in NAMES}
    before["a"].say(f"{FLEET}/v1/presence/a", b"kept", retain=True)
    before[COORDINATOR].say(f"{FLEET}/v1/down/a", b"kept", retain=True)
    before[COORDINATOR].say(ANNOUNCEMENT, b"kept", retain=True)
    before["b"].say(f"{FLEET}/v1/down/a", b"forged", retain=True)
    before["b"].say(ANNOUNCEMENT, b"forged", retain=True)
    late = {name: door.enter(name) for name in NAMES}
    for party in late.values():
        party.ask_for(CURIOUS)
    all_is_said(late)
    expected = {
        COORDINATOR: {(ANNOUNCEMENT, b"kept"), (f"{FLEET}/v1/presence/a", b"kept")},
        "a": {(ANNOUNCEMENT, b"kept"), (f"{FLEET}/v1/down/a", b"kept")},
        "b": {(ANNOUNCEMENT, b"kept")},
    }
    for name, wanted in expected.items():
        assert {one for one in late[name].heard if one[1] != b"last"} == wanted, name
    for who, topic in (
        (COORDINATOR, f"{FLEET}/v1/down/a"),
        (COORDINATOR, ANNOUNCEMENT),
        ("a", f"{FLEET}/v1/presence/a"),
    ):
        late[who].say(topic, b"", retain=True)


def test_a_will_is_held_to_the_same_rules(door: Door) -> None:
    """A device that dies cannot say on another's topic what it could not say alive."""
    ears = {name: door.enter(name) for name in (COORDINATOR, "a")}
    for party in ears.values():
        party.ask_for(CURIOUS)
    for topic in (f"{FLEET}/v1/down/a", f"{FLEET}/v1/presence/a", ANNOUNCEMENT, f"{FLEET}/v1/presence/b"):
        dying = door.enter("b", will=(topic, b"b is dead"))
        if not dying.refused:
            sock = dying.client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
    _until(lambda: (f"{FLEET}/v1/presence/b", b"b is dead") in ears[COORDINATOR].heard)
    all_is_said(ears)
    willed = {one for party in ears.values() for one in party.heard if one[1] == b"b is dead"}
    assert willed == {(f"{FLEET}/v1/presence/b", b"b is dead")}


def test_a_name_in_a_connect_is_no_certificate(door: Door) -> None:
    """Where there are certificates, who calls itself coordinator, or takes its client id, is still who it is."""
    if door.files is None:
        pytest.skip("without certificates a name is believed: that broker listens on loopback alone")
    true = door.enter(COORDINATOR, client_id=COORDINATOR)
    true.ask_for([f"{FLEET}/v1/up/+"])
    files = door.files
    liar_door = dataclasses.replace(door, files=lambda _name: files("b"), parties=[])
    liar = liar_door.enter(COORDINATOR, client_id=COORDINATOR)
    door.parties.append(liar)
    ear = door.enter("a")
    ear.ask_for([f"{FLEET}/v1/down/a"])
    liar.say(f"{FLEET}/v1/down/a", b"forged")
    true.say(f"{FLEET}/v1/down/a", b"true")
    all_is_said({COORDINATOR: true, "a": ear})
    assert (f"{FLEET}/v1/down/a", b"forged") not in ear.heard
    assert true.client.is_connected()


LEVELS = st.lists(st.sampled_from(["garden", "v1", "up", "down", "a", "b", "+"]), min_size=1, max_size=5)


@given(
    st.sampled_from([*NAMES, "+", "#", "a/b", ""]), LEVELS, st.sampled_from([[], ["#"]]), st.lists(LEVELS, max_size=5)
)
def test_what_is_covered_matches_nothing_else(
    name: str, levels: list[str], rest: list[str], topics: list[list[str]]
) -> None:
    """A subscription that is granted matches no topic that its owner may not read."""
    wanted = "/".join([*levels, *rest])
    allowed = rights(FLEET, name).read
    if covers(allowed, wanted):
        for topic in ("/".join(levels).replace("+", "x") for levels in topics):
            assert not matches(wanted, topic) or any(matches(pattern, topic) for pattern in allowed)


def test_a_name_that_is_a_wildcard_has_no_rights() -> None:
    """Nor has one with a slash, or none."""
    for name in ("+", "#", "a/b", "", "%u", "@other"):
        found = rights(FLEET, name)
        assert not found.read + found.write
