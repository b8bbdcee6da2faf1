"""amqtt in a process of its own: `python -m coordinator.amqtt_broker HOST PORT [FLEET]`, until it is ended.

The broker of last resort: slower than mosquitto, MQTT 3.1.1 alone. It does not deliver again what a device that went
away had not acknowledged, which the protocol does not rely on. With a FLEET it holds every client to that fleet's
rules; names are as clients give them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from coordinator.amqtt_access import FleetBroker


async def serve(host: str, port: int, fleet: str | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    listener = {"type": "tcp", "bind": f"{host}:{port}"}
    open_ = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    held = {f"coordinator.amqtt_access.{name}": {"fleet": fleet} for name in ("Names", "Rules")}
    plugins = open_ if fleet is None else held
    broker = FleetBroker({"listeners": {"default": listener}, "plugins": plugins})
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None))


if __name__ == "__main__":
    main()
