"""amqtt in a process of its own: `python -m coordinator.amqtt_broker HOST PORT`, until it is ended.

The broker of last resort: slower than mosquitto, MQTT 3.1.1 alone. It does not deliver again what a device that went
away had not acknowledged, which the protocol does not rely on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from amqtt.broker import Broker


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    listener = {"type": "tcp", "bind": f"{host}:{port}"}
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": listener}, "plugins": plugins})
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
