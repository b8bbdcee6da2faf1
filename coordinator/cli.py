"""`fedpeat`: the coordinator's command line.

Exit status: 0 done, 1 the run or a check failed, 2 wrong input or something is not installed, 130 stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import pathlib
import sqlite3
import sys
from collections.abc import Sequence
from typing import Final

from coordinator.errors import ConfigError, CoordinatorError
from coordinator.registry import DeviceState, Registered, Registry
from edge_sdk.wire.errors import WireError, os_error_line
from edge_sdk.wire.keys import fingerprint
from edge_sdk.wire.topics import check_device

NEEDED: Final = ("torch", "transformers", "peft", "optimum", "onnx", "onnxscript", "safetensors", "rich", "matplotlib")
WRONG_INPUT, STOPPED = 2, 130
CONFIG: Final = "coordinator.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["version"]:
        return _version()
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"this is a device's install: {', '.join(lacking)} not found. "
            "For the coordinator: pip install 'fedpeat[coordinator]'",
            file=sys.stderr,
        )
        return WRONG_INPUT
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except CoordinatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except (OSError, WireError, sqlite3.Error) as error:  # the disk is full, or what lies on it is damaged
        print(f"error: {os_error_line(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a second one, or before `serve` listens for it
        return STOPPED
    return status


def _parser() -> argparse.ArgumentParser:
    from coordinator.controller.cli import add_command as add_controller
    from coordinator.ladder.cli import add_command as add_ladder
    from export.cli import add_commands

    parser = argparse.ArgumentParser(prog="fedpeat", description="Federated fine-tuning: the coordinator's side.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("serve", help="run the rounds of a configuration, or go on with them")
    command.add_argument("--config", type=pathlib.Path, default=pathlib.Path(CONFIG), metavar="FILE")
    command.add_argument(
        "--insecure", action="store_true", help="accept a broker on another machine without TLS and certificates"
    )
    command.add_argument(
        "--restored", action="store_true", help="this is a backup: go on above the versions that devices have taken"
    )
    command.set_defaults(run=_serve)
    command = commands.add_parser("status", help="where a run stands, also while it runs")
    command.add_argument("--config", type=pathlib.Path, default=pathlib.Path(CONFIG), metavar="FILE")
    command.set_defaults(run=_status)
    _add_broker(commands.add_parser("broker", help="make a Mosquitto's configuration and certificates for a fleet"))
    _add_devices(commands.add_parser("devices", help="who belongs to the fleet: invite, list, approve, revoke"))
    commands.add_parser("version", help="print the version").set_defaults(run=lambda _arguments: _version())
    add_ladder(commands)
    add_controller(commands)
    add_commands(commands)
    return parser


def _add_broker(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("init", help="an authority, the broker's configuration, a certificate for each")
    command.add_argument("--fleet", required=True, help="as in coordinator.toml and device.toml")
    text = "name or address by which devices reach the broker; may be given again"
    command.add_argument("--host", required=True, action="append", metavar="HOST", help=text)
    command.add_argument("--port", type=_port, default=8883)
    command.add_argument("--at", default="", metavar="DIR", help="where the broker's folder will lie on its machine")
    command.set_defaults(run=_broker_init)
    _add_names(command, "*")
    command = commands.add_parser("add", help="certificates for more devices; the broker need not be told")
    command.set_defaults(run=_broker_add)
    _add_names(command, "+")
    command = commands.add_parser("revoke", help="let the broker refuse devices' certificates")
    command.set_defaults(run=_broker_revoke)
    _add_names(command, "+", days=False)


def _add_names(command: argparse.ArgumentParser, nargs: str, *, days: bool = True) -> None:
    command.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
    command.add_argument("devices", nargs=nargs, metavar="DEVICE")
    if days:
        command.add_argument("--days", type=_days, default=730, help="how long certificates are good; default: 730")


def _port(text: str) -> int:
    return _whole(text, 65535)


def _days(text: str) -> int:
    return _whole(text, 3650)


def _whole(text: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= most:
        msg = f"{text!r} is no whole number from 1 to {most}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _broker_init(arguments: argparse.Namespace) -> int:
    from coordinator import fleet_broker

    folder, devices = arguments.folder, arguments.devices
    fleet_broker.init(
        folder,
        arguments.fleet,
        arguments.host,
        devices,
        port=arguments.port,
        days=arguments.days,
        at=arguments.at,
    )
    at = arguments.at or (folder / "broker").absolute()
    print(f"{folder}/broker: to the broker's machine, and there: mosquitto -c {at}/mosquitto.conf")
    print(f"{folder}/coordinator: to the coordinator")
    _say_devices(folder, devices)
    print(f"{folder}/authority: stays here; its key makes every name")
    print(f"the broker's URL is mqtts://{arguments.host[0]}:{arguments.port}")
    return 0


def _say_devices(folder: pathlib.Path, devices: Sequence[str]) -> None:
    for device in devices:
        print(f"{folder}/devices/{device}: to {device}")


def _broker_add(arguments: argparse.Namespace) -> int:
    from coordinator import fleet_broker

    fleet_broker.add(arguments.folder, arguments.devices, days=arguments.days)
    _say_devices(arguments.folder, arguments.devices)
    return 0


def _broker_revoke(arguments: argparse.Namespace) -> int:
    from coordinator import fleet_broker

    fleet_broker.revoke(arguments.folder, arguments.devices)
    print(f"copy {arguments.folder}/broker/{fleet_broker.CRL} to the broker's machine, and start the broker again")
    return 0


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path(CONFIG), metavar="FILE")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_ in (
        ("invite", _invite, "print a token, good once, for the configuration of the device of this name"),
        ("approve", _approve, "let a device take part that waits, or was revoked; compare its key before"),
        ("revoke", _revoke, "let a device take part in nothing any more"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("device", metavar="NAME")
        command.set_defaults(run=run)
    command = commands.add_parser("list", help="names, states and keys")
    command.add_argument("--keys", action="store_true", help="a roster of the enrolled: names and whole keys alone")
    command.set_defaults(run=_devices)


def _registry(arguments: argparse.Namespace) -> Registry:
    from coordinator.config import load_config
    from coordinator.places import trust_folder

    return Registry(trust_folder(load_config(arguments.config)))


def _invite(arguments: argparse.Namespace) -> int:
    try:
        device = check_device(arguments.device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with _registry(arguments) as registry:
        print(registry.invite(device))
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    with _registry(arguments) as registry:
        return _judged(arguments.device, registry.approve(arguments.device))


def _revoke(arguments: argparse.Namespace) -> int:
    with _registry(arguments) as registry:
        return _judged(arguments.device, registry.revoke(arguments.device))


def _judged(device: str, found: Registered | None) -> int:
    if found is None:
        msg = f"no device {device!r} is known here; `fedpeat devices list` has all that are"
        raise ConfigError(msg)
    print(_device_line(found))
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    with _registry(arguments) as registry:
        if arguments.keys:
            return _roster(registry)
        for device in registry.devices():
            print(_device_line(device))
        for name in registry.invited():
            print(f"{name:24} invited")
    return 0


def _roster(registry: Registry) -> int:
    for device in registry.devices():
        if device.state is DeviceState.ENROLLED:
            print(f"{device.device} {device.key.hex()}")
    return 0


def _device_line(device: Registered) -> str:
    return f"{device.device:24} {device.state.value:10} {fingerprint(device.key)}"


def _serve(arguments: argparse.Namespace) -> int:
    from coordinator.config import load_config
    from coordinator.screen import Screen
    from coordinator.serve import serve

    return serve(load_config(arguments.config), Screen(), insecure=arguments.insecure, restored=arguments.restored)


def _status(arguments: argparse.Namespace) -> int:
    from coordinator.config import load_config
    from coordinator.history import read_history
    from coordinator.places import ledger_path
    from coordinator.screen import Screen, evaluation_table, result_table

    config = load_config(arguments.config)
    history = read_history(ledger_path(config))
    screen = Screen()
    now = history.rounds[-1] if history.rounds else None
    done = f"{history.done} of {config.rounds.count} rounds"
    screen.line(f"run {history.name} ({history.run}): {done}, {len(history.devices)} devices")
    if now is not None and now.state == "open":
        screen.line(
            f"round {now.round} is open, attempt {now.attempt}; {history.open_tasks} tasks are not answered yet"
        )
    screen.table(result_table(history))
    screen.table(evaluation_table(history, config.levels[-1].name))
    return 0


def _version() -> int:
    print(importlib.metadata.version("fedpeat"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
