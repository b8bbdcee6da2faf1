"""`fedpeat-edge run`: the agent as a process of its own, until a signal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import signal
import time
from collections.abc import Iterator

from edge_sdk.agent import Agent
from edge_sdk.cgroup import NotDelegated, claim
from edge_sdk.config import DataConfig, DataKind, DeviceConfig, load_config
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.identity import Identity
from edge_sdk.providers import require
from edge_sdk.sources import open_source
from edge_sdk.wire.allocator import keep_freed_memory
from edge_sdk.wire.blobs import make_folder
from edge_sdk.wire.endpoint import address, check_broker
from edge_sdk.wire.lifeline import stop_on_signals
from edge_sdk.wire.manifest import ImageSpec
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.settings import SettingsError

STOPPED, INTERRUPTED = 0, 130
ANY_IMAGE = ImageSpec(3, 32, 32)  # of a model that is not known yet


def run(config_path: pathlib.Path, *, insecure: bool) -> int:
    """Be the device of this configuration until a signal; the exit status. Raises EdgeError, WireError, OSError.

    Another machine's broker needs certificates, and a coordinator that is known, unless `insecure`.
    """
    keep_freed_memory()
    config = load_config(config_path)
    try:
        check_broker(config.broker, config.tls, insecure=insecure)
    except SettingsError as error:
        raise ConfigError(str(error)) from error
    _require_data(config.data)
    require(config.provider)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(config.store))
        stop = stack.enter_context(stop_on_signals())
        identity = Identity.of(config)
        require_coordinator(config, identity, insecure=insecure)
        transport = MqttTransport(
            config.broker,
            f"{config.fleet}/device/{config.device}",
            Agent.will(config, identity),
            tls=config.tls,
            user=config.device,
            max_packet_bytes=config.max_packet_bytes,
        )
        stack.callback(transport.close)
        agent = Agent(config, identity, transport, _say, _claimed())
        stack.callback(agent.close)
        while not stop.signal:
            agent.turn()
    return INTERRUPTED if stop.signal == signal.SIGINT else STOPPED


def require_coordinator(config: DeviceConfig, identity: Identity, *, insecure: bool) -> None:
    """Obey whoever answers first on this machine alone. Raises ConfigError."""
    broker = address(config.broker)
    if identity.coordinator is None and not broker.is_loopback and not insecure:
        msg = (
            f"this device knows no coordinator yet, and {broker.host} is another machine: put the token that `fedpeat "
            f"devices invite {config.device}` prints into its configuration, or pass --insecure to obey whoever answers"
        )
        raise ConfigError(msg)


def _require_data(config: DataConfig) -> None:
    """Say now, not in the first round, that the data is not there, or begins unlike its kind. Raises DataError."""
    source = open_source(config, _classes(config), ANY_IMAGE)
    source.fingerprint()
    if next(iter(source.read()), None) is None:
        msg = f"{config.path} holds nothing to learn from"
        raise DataError(msg)


def _classes(config: DataConfig) -> tuple[str, ...]:
    """Names of classes, which a task will say, where no item is found without them: those of folders of pictures."""
    if config.kind is not DataKind.IMAGE_FILES:
        return ()
    found = tuple(sorted(path.name for path in config.path.glob("*") if path.is_dir()))
    if not found:
        msg = f"{config.path} has no folders: pictures of each class must be in one of its own"
        raise DataError(msg)
    return found


def _claimed() -> pathlib.Path | None:
    """The cgroup to make groups for tasks in, if it is ours; says which enforcement that means."""
    try:
        home = claim()
    except NotDelegated as error:
        _say(f"the budget is held by RLIMIT_DATA and a watch: {error}")
        return None
    _say(f"the budget is held by a cgroup of each task's own, in {home}, and a watch")
    return home


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


@contextlib.contextmanager
def _alone(store: pathlib.Path) -> Iterator[None]:
    """Hold the store's lock. Raises ConfigError where another agent has it."""
    make_folder(store)
    handle = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another agent uses {store}; stop it, or give each device a store of its own"
            raise ConfigError(msg) from error
        yield
    finally:
        os.close(handle)
