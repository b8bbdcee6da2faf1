"""amqtt held to a fleet's rules: in what is published, subscribed to, received, retained and willed.

amqtt asks plugins about the first three. What it retained it gives out unasked, to every client that connects, and a
will it publishes for a client who might not: these two are held here besides. It deletes the session of a client whose
id another one gives before any plugin is asked, so whoever reaches it can throw others out.

It reads MQTT 5's CONNECT as if it were one of 3.1.1, and waits for bytes that never come: it is given whole packets of
3.1.1 alone, and refuses others as the standard says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from amqtt.adapters import BufferReader, ReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.codecs_amqtt import read_or_raise
from amqtt.contexts import Action
from amqtt.errors import MQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from coordinator.access import Rights, covers, rights

CONNECT: Final = 0x10
MORE: Final = 0x80  # in a byte of a length: another follows
PROTOCOL: Final = b"\x00\x04MQTT"
LEVEL: Final = 4  # of MQTT 3.1.1
UNACCEPTABLE: Final = b"\x20\x02\x00\x01"  # CONNACK: unacceptable protocol version
MAX_CONNECT: Final = 1 << 16


@dataclass
class FleetConfig:
    """Whose rules hold."""

    fleet: str


class Names(BaseAuthPlugin):  # type: ignore[misc] # amqtt has no types
    """Lets in who has a name, and no will beyond its rights."""

    Config = FleetConfig

    async def authenticate(self, *, session: Session) -> bool:
        """See BaseAuthPlugin."""
        if not session.username:
            return False
        return not session.will_flag or covers(_rights(self, session).write, session.will_topic or "")


class Rules(BaseTopicPlugin):  # type: ignore[misc] # amqtt has no types
    """Asked for every message and subscription."""

    Config = FleetConfig

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """See BaseTopicPlugin."""
        if session is None or topic is None:
            return False
        found = _rights(self, session)
        return covers(found.write if action is Action.PUBLISH else found.read, topic)


class FleetBroker(Broker):  # type: ignore[misc] # amqtt has no types
    """Gives what is retained to those who subscribed to it, and refuses what is not MQTT 3.1.1."""

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        packet = await _first_packet(reader)
        if packet.body[len(PROTOCOL)] != LEVEL:
            writer.write(UNACCEPTABLE)
            await writer.drain()
            await writer.close()
            msg = f"not MQTT 3.1.1: level {packet.body[len(PROTOCOL)]}"
            raise MQTTError(msg)
        await self._take_over(packet.client_id)
        whole = BufferReader(packet.head + packet.body)
        made: tuple[BrokerProtocolHandler, Session] = await super()._initialize_client_session(
            whole, writer, remote_address, remote_port
        )
        return made

    async def _take_over(self, client_id: str) -> None:
        """End the connection of the same client that is still open, as section 3.1.4 asks: with its will.

        Left open, its will would come when it breaks at last, after the new connection's word that all is well.
        """
        session, handler = self._sessions.get(client_id, (None, None))
        if session is not None and session.transitions.is_connected():
            await handler.handle_connection_closed()
            await handler.stop()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        subscribed = self._subscriptions.get(subscription[0], ())
        if any(subscriber is session for subscriber, _qos in subscribed):
            await super()._publish_retained_messages_for_subscription(subscription, session)


@dataclass(frozen=True, slots=True)
class _Packet:
    head: bytes
    body: bytes

    @property
    def client_id(self) -> str:
        """The first field after level, flags and keep-alive; empty where there is none."""
        begin = len(PROTOCOL) + 4
        length = int.from_bytes(self.body[begin : begin + 2], "big")
        return self.body[begin + 2 : begin + 2 + length].decode("utf-8", errors="replace")


async def _first_packet(reader: ReaderAdapter) -> _Packet:
    """A CONNECT, whole: section 3.1 of both standards begins alike. Raises NoDataError, MQTTError."""
    head = await read_or_raise(reader, 1)
    length = 0
    for k in range(4):
        byte = await read_or_raise(reader, 1)
        head += byte
        length |= (byte[0] & ~MORE) << 7 * k
        if not byte[0] & MORE:
            break
    if head[0] != CONNECT or not len(PROTOCOL) < length <= MAX_CONNECT:
        msg = "the first packet is no CONNECT"
        raise MQTTError(msg)
    body = await read_or_raise(reader, length)
    if not body.startswith(PROTOCOL):
        msg = "the first packet is no CONNECT of MQTT 3.1.1 or 5"
        raise MQTTError(msg)
    return _Packet(head, body)


def _rights(plugin: Names | Rules, session: Session) -> Rights:
    return rights(plugin.config.fleet, session.username or "")
