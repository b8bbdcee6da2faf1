"""Who is there: devices by what they said of themselves. Pure: no clock, no sockets; every change gives a new `Fleet`.

Rules about sessions (a device process makes up a new one each time it starts):

- a Hello makes its session the device's current one, and the device online;
- Presence counts only for the current session: the last will of a process that is gone must not bury its successor;
- Presence of a device that has not said Hello is ignored: what it can do is unknown until then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edge_sdk.wire.messages import Hello, Presence


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its last Hello, and whether it is connected."""

    hello: Hello
    online: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """All devices that ever said Hello, by name."""

    devices: Mapping[str, Device] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Device]:
        """Devices in the order of their names, so that nothing depends on who spoke first."""
        return iter(self.devices[name] for name in sorted(self.devices))

    def __len__(self) -> int:
        """How many devices ever said Hello."""
        return len(self.devices)

    def __contains__(self, name: str) -> bool:
        """Whether the device ever said Hello."""
        return name in self.devices

    def online(self) -> tuple[Device, ...]:
        """Those connected now."""
        return tuple(device for device in self if device.online)

    def with_hello(self, hello: Hello) -> Fleet:
        """The fleet after a device introduced itself."""
        return self._with(hello.device, Device(hello, online=True))

    def with_presence(self, presence: Presence) -> Fleet:
        """The fleet after a device came or went."""
        device = self.devices.get(presence.device)
        if device is None or device.hello.session != presence.session or device.online == presence.online:
            return self
        return self._with(presence.device, dataclasses.replace(device, online=presence.online))

    def with_battery(self, name: str, battery: float) -> Fleet:
        """The fleet after a device said what is left of its battery, 0 to 1."""
        device = self.devices.get(name)
        if device is None or device.hello.battery == battery:
            return self
        return self._with(name, dataclasses.replace(device, hello=dataclasses.replace(device.hello, battery=battery)))

    def with_offline(self, name: str) -> Fleet:
        """The fleet after a device was sent away."""
        device = self.devices.get(name)
        return self if device is None else self._with(name, dataclasses.replace(device, online=False))

    def with_all_offline(self) -> Fleet:
        """The fleet as a coordinator finds it that was just restarted: known, and not yet heard."""
        return Fleet({name: dataclasses.replace(device, online=False) for name, device in self.devices.items()})

    def _with(self, name: str, device: Device) -> Fleet:
        return Fleet({**self.devices, name: device})
