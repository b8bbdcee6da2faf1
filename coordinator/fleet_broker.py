"""`fedpeat broker`: what a Mosquitto for other machines needs, and who may come in.

`init` makes a folder, `add` puts devices into it, `revoke` has the broker refuse one's certificate:

    authority/         ca.crt, ca.key       makes every name: keep it where you make devices
    broker/            to the broker's machine: mosquitto.conf, its access list, certificate, key, and what is revoked
    coordinator/       ca.crt, client.crt, client.key
    devices/NAME/      the same, to the device of that name
    revoked/NAME.K/    what was a device's

Each folder is whole when its name appears, and is never written again: only the list of what is revoked is.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

from coordinator.access import mosquitto_acl
from coordinator.authority import (
    PUBLIC,
    Authority,
    check_host,
    load_authority,
    make_authority,
    write_new,
)
from coordinator.errors import ConfigError
from edge_sdk.wire.blobs import written_atomically
from edge_sdk.wire.messages import MAX_MESSAGE_BYTES
from edge_sdk.wire.topics import COORDINATOR, Topics, check_device
from edge_sdk.wire.transport import PACKET_OVERHEAD_BYTES

CRL: Final = "revoked.crl"

MOSQUITTO: Final = """\
# The broker of the fleet {fleet}: made by `fedpeat broker init`, for Mosquitto 2.0.11 and newer.
listener {port}
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
crlfile {folder}/{crl}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl
persistence false
set_tcp_nodelay true
max_packet_size {packet_bytes}
"""


def init(
    folder: pathlib.Path, fleet: str, hosts: Sequence[str], devices: Sequence[str], *, port: int, days: int, at: str
) -> None:
    """Make all of it; `at` is where the broker's folder will lie on its machine, empty for where it is now.

    Raises ConfigError, OSError.
    """
    _check_fleet(fleet)
    for host in hosts:
        check_host(host)
    _check_devices(devices)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} is there already, and is not written over; `fedpeat broker add` adds devices to it"
        raise ConfigError(msg)
    authority = make_authority(fleet)
    with _made_whole(folder) as making:
        authority.save(making / "authority")
        broker = making / "broker"
        authority.issue_broker(hosts, broker, days)
        there = at or str((folder / "broker").absolute())
        packet_bytes = MAX_MESSAGE_BYTES + PACKET_OVERHEAD_BYTES
        said = MOSQUITTO.format(fleet=fleet, port=port, folder=there, crl=CRL, packet_bytes=packet_bytes)
        write_new(broker / "mosquitto.conf", said.encode(), PUBLIC)
        write_new(broker / "acl", mosquitto_acl(fleet).encode(), PUBLIC)
        write_new(broker / CRL, authority.revoked([]), PUBLIC)
        authority.issue_client(COORDINATOR, making / "coordinator", days)
        (making / "devices").mkdir()
        for device in devices:
            authority.issue_client(device, making / "devices" / device, days)


def add(folder: pathlib.Path, devices: Sequence[str], *, days: int) -> None:
    """Make certificates for more devices; what is there does not change. Raises ConfigError, OSError."""
    authority = load_authority(folder / "authority")
    _check_devices(devices)
    for device in devices:
        if _place(folder, device).exists():
            msg = f"{_place(folder, device)} is there already: `fedpeat broker revoke` it to make another"
            raise ConfigError(msg)
    for device in devices:
        with _made_whole(_place(folder, device)) as making:
            authority.issue_client(device, making, days)


def revoke(folder: pathlib.Path, devices: Sequence[str]) -> None:
    """Put devices' certificates on the list in the broker's folder. Raises ConfigError, OSError."""
    authority = load_authority(folder / "authority")
    _check_devices(devices)
    for device in devices:
        if not _place(folder, device).is_dir():
            msg = f"{_place(folder, device)} is not there: no certificate of {device} is known here"
            raise ConfigError(msg)
    for device in devices:
        _retire(folder, authority, device)


def _retire(folder: pathlib.Path, authority: Authority, device: str) -> None:
    """First the list says so, then the name is free for another certificate."""
    gone = folder / "revoked"
    gone.mkdir(exist_ok=True)
    known = [path.read_bytes() for path in sorted(gone.glob("*/client.crt"))]
    own = _place(folder, device)
    with written_atomically(folder / "broker" / CRL) as file:
        file.write(authority.revoked([*known, (own / "client.crt").read_bytes()]))
    own.rename(gone / f"{device}.{len(known)}")


def _place(folder: pathlib.Path, device: str) -> pathlib.Path:
    return folder / "devices" / device


@contextlib.contextmanager
def _made_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill; it gets its name when all is in it, and is gone when something fails."""
    making = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _check_fleet(fleet: str) -> None:
    try:
        Topics(fleet)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_devices(devices: Sequence[str]) -> None:
    try:
        for device in devices:
            check_device(device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if len(set(devices)) != len(devices):
        msg = f"a device is named twice: {', '.join(devices)}"
        raise ConfigError(msg)
