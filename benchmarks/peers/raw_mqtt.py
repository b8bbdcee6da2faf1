"""Bare paho at both ends of a broker: `python -m benchmarks.peers.raw_mqtt publish|count HOST PORT FLEET CHUNK_BYTES
COUNT`. They go by names of the fleet, whose broker lets nobody else speak.

`count` prints "ready" when it is subscribed, and then the seconds from the first chunk to the last. `publish` ends when
the broker has acknowledged all.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.wire.topics import COORDINATOR, Topics

NAME: Final = "raw"
PATIENCE_S: Final = 120.0
UNACKNOWLEDGED: Final = 8  # a window, as a device asks for


def publish(host: str, port: int, topic: str, chunk_bytes: int, count: int) -> None:
    """Send `count` chunks of no meaning. Raises RuntimeError where the broker does not take them."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(COORDINATOR)
    client.max_inflight_messages_set(UNACKNOWLEDGED)
    client.connect(host, port)
    client.loop_start()
    payload = bytes(chunk_bytes)
    sent = [client.publish(topic, payload, qos=1) for _ in range(count)]
    sent[-1].wait_for_publish(PATIENCE_S)
    if not sent[-1].is_published():
        msg = "the broker did not take all chunks"
        raise RuntimeError(msg)
    client.disconnect()
    client.loop_stop()


def count_chunks(host: str, port: int, topic: str, chunk_bytes: int, count: int) -> float:
    """The seconds from the first chunk to the last. Raises RuntimeError where they do not come, or are others."""
    times_s: list[float] = []
    over = threading.Event()

    def on_message(_client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401
        if len(message.payload) == chunk_bytes:
            times_s.append(time.monotonic())
        if len(times_s) == count:
            over.set()

    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(NAME)
    client.on_message = on_message
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect(host, port)
    client.subscribe(topic, 1)
    client.loop_start()
    if not over.wait(PATIENCE_S):
        msg = f"{len(times_s)} of {count} chunks came"
        raise RuntimeError(msg)
    client.disconnect()
    client.loop_stop()
    return times_s[-1] - times_s[0]


def main() -> None:
    """Run the command line."""
    role, host, port, fleet, *numbers = sys.argv[1:]
    chunk_bytes, count = map(int, numbers)
    topic = Topics(fleet).down(NAME)
    if role == "publish":
        publish(host, int(port), topic, chunk_bytes, count)
    else:
        print(count_chunks(host, int(port), topic, chunk_bytes, count), flush=True)


if __name__ == "__main__":
    main()
