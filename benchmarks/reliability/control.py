"""The control column: what the obvious way does under the same faults. It is seen to fail, or the faults prove nothing.

**Naive push**: whoever has chunks publishes them at QoS 1 and counts PUBACKs; the subscriber is frozen meanwhile. The
broker is Mosquitto as it comes. **Plain FedAvg**: the mean of what was sent, and nobody looks at the numbers.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.validate import Accepted, check_delta, expected
from edge_sdk.wire.delta import Delta, decode_delta
from edge_sdk.wire.messages import RefusalReason
from tests.brokers import Mosquitto, find_mosquitto
from tests.coordinator import samples

TOPIC: Final = "push"
CHUNK_BYTES: Final = 4096
QUIET_S: Final = 5.0  # without a message, after the subscriber was let go on: no more come
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Push:
    """Chunks published, acknowledged by the broker, and ever received by the subscriber."""

    published: int
    acknowledged: int
    received: int


class DefaultMosquitto(Mosquitto):
    """As it comes: all its limits are its own."""

    def command(self) -> list[str]:
        """Without a word about queues."""
        configuration = self.folder / "default.conf"
        configuration.write_text(f"listener {self.port} {self.host}\nallow_anonymous true\n")
        return [find_mosquitto(), "-c", str(configuration)]


def naive_push(folder: pathlib.Path, chunks: int) -> Push:
    """Publish `chunks` to a subscriber that is frozen, let it go on, and count. Raises TimeoutError."""
    folder.mkdir(parents=True)
    broker = DefaultMosquitto(folder)
    broker.start()
    subscriber = None
    try:
        publisher, acknowledged, done = _publisher(broker, chunks)
        command = [sys.executable, "-m", "benchmarks.reliability.control", broker.host, str(broker.port)]
        subscriber = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if subscriber.stdout is None or "listening" not in subscriber.stdout.readline():
            msg = "the subscriber does not listen"
            raise TimeoutError(msg)
        subscriber.send_signal(signal.SIGSTOP)
        for number in range(chunks):
            publisher.publish(TOPIC, number.to_bytes(4, "big") + bytes(CHUNK_BYTES - 4), qos=1)
        if not done.wait(PATIENCE_S):
            msg = "not every chunk was acknowledged"
            raise TimeoutError(msg)
        subscriber.send_signal(signal.SIGCONT)
        received = int(json.loads(subscriber.stdout.readline())["received"])
        publisher.loop_stop()
        publisher.disconnect()
        return Push(chunks, len(acknowledged), received)
    finally:
        if subscriber is not None:
            subscriber.kill()
            subscriber.wait()
            if subscriber.stdout is not None:
                subscriber.stdout.close()
        broker.kill()


def _publisher(broker: Mosquitto, chunks: int) -> tuple[Client, set[int], threading.Event]:
    publisher, acknowledged, done = Client(CallbackAPIVersion.VERSION2), set[int](), threading.Event()
    publisher.max_queued_messages_set(0)

    def on_publish(_client: Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        acknowledged.add(mid)
        if len(acknowledged) == chunks:
            done.set()

    publisher.on_publish = on_publish
    _connect(publisher, broker.host, broker.port)
    publisher.loop_start()
    return publisher, acknowledged, done


def _connect(client: Client, host: str, port: int) -> None:
    """Connect to a broker that is only just starting. Raises TimeoutError."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            client.connect(host, port)
            return
        time.sleep(0.05)
    msg = f"no broker at {host}:{port}"
    raise TimeoutError(msg)


def subscribe(host: str, port: int) -> int:
    """The subscriber, in a process of its own: count until nothing comes any more, and say so."""
    client, heard = Client(CallbackAPIVersion.VERSION2, client_id="subscriber"), queue.SimpleQueue[int]()
    client.on_message = lambda _client, _data, message: heard.put(int.from_bytes(message.payload[:4], "big"))
    client.on_subscribe = lambda *_: print("listening", flush=True)
    _connect(client, host, port)
    client.subscribe(TOPIC, 1)
    client.loop_start()
    received, wait_s = set[int](), PATIENCE_S
    with contextlib.suppress(queue.Empty):
        while True:
            received.add(heard.get(timeout=wait_s))
            wait_s = QUIET_S
    print(json.dumps({"received": len(received)}), flush=True)
    client.loop_stop()
    return 0


@dataclass(frozen=True, slots=True)
class Poisoned:
    """What one NaN among three devices' deltas does to the model: numbers of it that are no numbers any more."""

    numbers: int
    plain_not_finite: int
    ours_not_finite: int
    refusal: str
    same_as_without: bool


def poisoned_mean() -> Poisoned:
    """Three deltas, one of which has one NaN: the plain mean of all, and of those that validation lets through."""
    task = samples.make_task()
    wanted = expected(task, "d", samples.make_manifest("small", (1,), 100))
    honest = [samples.make_delta(dict(wanted.shapes), seed=k) for k in range(3)]
    name = next(iter(wanted.shapes))
    array = np.array(honest[2].tensors[name])
    array.flat[0] = np.nan
    sent = [honest[0], honest[1], Delta({**honest[2].tensors, name: array})]
    files = [samples.delta_bytes(task, "d", delta) for delta in sent]
    verdicts = [check_delta(data, wanted) for data in files]
    ours = [verdict.delta for verdict in verdicts if isinstance(verdict, Accepted)]
    refused = [verdict.reason for verdict in verdicts if not isinstance(verdict, Accepted)]
    plain, checked, without = _mean([_unpacked(data) for data in files]), _mean(ours), _mean(honest[:2])
    return Poisoned(
        numbers=sum(a.size for a in plain.values()),
        plain_not_finite=_not_finite(plain),
        ours_not_finite=_not_finite(checked),
        refusal=", ".join(reason.value for reason in refused),
        same_as_without=all(np.array_equal(checked[name], without[name]) for name in without),
    )


def bites(push: Push, mean: Poisoned) -> bool:
    """Whether the control fails, and ours does not: else the faults proved nothing."""
    lost = push.acknowledged == push.published > push.received
    ours = mean.ours_not_finite == 0 and mean.same_as_without and mean.refusal == RefusalReason.NOT_FINITE.value
    return lost and mean.plain_not_finite > 0 and ours


def as_json(push: Push, mean: Poisoned) -> dict[str, Any]:
    """Both, for the scoreboard."""
    return {"naive_push": asdict(push), "plain_fedavg": asdict(mean), "bites": bites(push, mean)}


def _mean(deltas: list[Delta]) -> dict[str, Any]:
    return {name: np.mean([delta.tensors[name] for delta in deltas], axis=0) for name in deltas[0].tensors}


def _not_finite(tensors: dict[str, Any]) -> int:
    return int(sum((~np.isfinite(array)).sum() for array in tensors.values()))


def _unpacked(data: bytes) -> Delta:
    return decode_delta(data, len(data))[1]


if __name__ == "__main__":
    sys.exit(subscribe(sys.argv[1], int(sys.argv[2])))
