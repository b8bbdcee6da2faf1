"""`fedpeat-edge doctor`: what a device needs, checked; a line and, where something is amiss, a remedy each.

`FAIL` prevents work, `warn` makes it worse, `note` is worth knowing. Libraries are imported by processes of their own:
one that dies (as onnxruntime 1.21.0 does on the CPU of a Raspberry Pi 3 or 4) is a finding, not our end.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_sdk.cgroup import PROC, NotDelegated, delegated_group
from edge_sdk.environment import training_environment
from edge_sdk.errors import ConfigError
from edge_sdk.providers import installed
from edge_sdk.store import RESERVE_BYTES
from edge_sdk.wire.endpoint import Address, TlsFiles, address, context, why_no_tls
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.settings import SettingsError

OLDEST_PYTHON: Final = (3, 10)
MACHINES: Final = ("x86_64", "aarch64")
# Distribution to what is imported. onnxruntime through the one module that turns its telemetry off before.
LIBRARIES: Final = {
    "numpy": "numpy",
    "onnxruntime": "edge_sdk.engine.runtime",
    "paho-mqtt": "paho.mqtt.client",
    "msgpack": "msgpack",
    "psutil": "psutil",
    "cryptography": "edge_sdk.wire.keys",
}
OPTIONAL: Final = {"tokenizers": "text is not read without it, token arrays are: pip install 'fedpeat[text]'"}
EXCLUDED: Final = {"onnxruntime": ("1.21.0", "1.22.0")}  # illegal instruction on Cortex-A53 and A72
IMPORT_S: Final = 60.0  # from a slow card
CORES: Final = {"0xd03": "Cortex-A53", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd42": "Cortex-A78AE"}
FEATURES: Final = ("asimd", "asimddp", "asimdhp", "i8mm", "avx2", "avx512f", "avx512_vnni")
LEAN_BYTES: Final = 256 * 10**6  # of memory: less, and hardly any emulator fits
LEAN_DISK_BYTES: Final = 10**9
CONNECT_S: Final = 5.0
ACCEPTED: Final = b"\x20\x02\x00\x00"  # CONNACK: type, length, flags, return code
# https://docs.oasis-open.org/mqtt/mqtt/v3.1.1, table 3.1
REFUSALS: Final = {
    1: "it does not speak MQTT 3.1.1",
    2: "it refuses our client id",
    3: "it is not available",
    4: "it wants a user name and password",
    5: "it does not let us in",
}


class State(enum.Enum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what helps."""

    state: State
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.state.value:4}  {self.check:12} {self.text}{remedy}"


Endpoint = tuple[str, TlsFiles | None]  # a broker's URL, and what mqtts needs


def run(broker: Endpoint | None, store: pathlib.Path | None) -> int:
    """Check everything and print it; 1 when something prevents work."""
    failed = False
    for finding in findings(broker, store):
        print(finding, flush=True)
        failed = failed or finding.state is State.FAIL
    return int(failed)


def findings(broker: Endpoint | None, store: pathlib.Path | None) -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    yield check_python(sys.version_info[:3], platform.machine())
    for name, module in LIBRARIES.items():
        yield check_library(name, module)
    yield check_providers()
    for name, why in OPTIONAL.items():
        yield check_optional(name, why)
    yield check_cpu(pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), platform.machine())
    yield check_memory(pathlib.Path("/proc/meminfo").read_text(encoding="utf-8"))
    yield check_cgroup(pathlib.Path("/"))
    yield check_enforcement(PROC)
    if store is None or broker is None:
        yield Finding(State.NOTE, "config", "store and broker were not checked", "--config device.toml names them")
    if store is not None:
        yield check_store(store)
    if broker is not None:
        yield check_broker(*broker)


def check_python(version: tuple[int, ...], machine: str) -> Finding:
    """A Python that every library has wheels for, on a 64-bit machine."""
    text = f"{'.'.join(map(str, version))} on {machine}"
    if machine not in MACHINES:
        remedy = f"onnxruntime has wheels for {' and '.join(MACHINES)} alone: install a 64-bit system"
        return Finding(State.FAIL, "python", text, remedy)
    if version[:2] < OLDEST_PYTHON:
        return Finding(State.FAIL, "python", text, "Python 3.10 or newer is needed")
    return Finding(State.OK, "python", text)


def check_library(name: str, module: str) -> Finding:
    """A library that every device needs, imported by another process."""
    version = _version(name)
    if version is None:
        return Finding(State.FAIL, name, "is not installed", "pip install fedpeat")
    if version in EXCLUDED.get(name, ()):
        return Finding(State.FAIL, name, f"{version} dies on Cortex-A53 and A72", f"pip install --upgrade {name}")
    error = _import_error(module)
    if error is not None:
        again = f"pip install --force-reinstall {name}"
        return Finding(State.FAIL, name, f"{version} cannot be imported: {error}", again)
    return Finding(State.OK, name, version)


def check_providers() -> Finding:
    """What onnxruntime could train with here."""
    try:
        return Finding(State.OK, "providers", f"{', '.join(installed())}: the configuration's provider is one of these")
    except ConfigError as error:
        return Finding(State.FAIL, "providers", str(error), "pip install --force-reinstall onnxruntime")


def check_optional(name: str, why: str) -> Finding:
    """A library that some devices need."""
    version = _version(name)
    return Finding(State.OK, name, version) if version else Finding(State.NOTE, name, "is not installed", why)


def check_cpu(cpuinfo: str, machine: str) -> Finding:
    """What the processor is and can; `cpuinfo` as the kernel writes it."""
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    features = [name for name in FEATURES if listed and name in listed[1].split()]
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
    parts = sorted({CORES.get(part, part) for part in re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, re.MULTILINE)})
    text = f"{machine}, {cores} core(s){''.join(f', {part}' for part in parts)}: {' '.join(features) or 'no SIMD'}"
    if machine == "x86_64" and "avx2" not in features:
        return Finding(State.WARN, "cpu", text, "without AVX2 training takes several times as long")
    return Finding(State.OK, "cpu", text)


def check_memory(meminfo: str) -> Finding:
    """How much memory there is; `meminfo` as the kernel writes it."""
    sizes = {
        name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE)
    }
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    text = f"{_mb(available)} of {_mb(total)} available"
    if available < LEAN_BYTES:
        return Finding(State.WARN, "memory", text, "end other programs, or give the device a small emulator level")
    return Finding(State.OK, "memory", f"{text}: a budget below that can be met")


def check_cgroup(root: pathlib.Path) -> Finding:
    """Whether the system limits our memory, and whether it could. `root` is the root of the file system."""
    limits = [limit for path in _limit_files(root) if (limit := _limit_bytes(path)) is not None]
    if limits:
        return Finding(State.OK, "cgroup", f"memory is limited to {_mb(min(limits))}: choose the budget below it")
    controllers = _text(root / "sys/fs/cgroup/cgroup.controllers").split()
    if "memory" in controllers or (root / "sys/fs/cgroup/memory").is_dir():
        return Finding(State.OK, "cgroup", "memory controller on, no limit set")
    if "cgroup_disable=memory" in _text(root / "proc/cmdline").split():
        remedy = "put cgroup_enable=memory into /boot/firmware/cmdline.txt and start again"
        return Finding(State.WARN, "cgroup", "the memory controller is switched off at boot", remedy)
    return Finding(State.NOTE, "cgroup", "no memory controller")


def check_enforcement(proc: pathlib.Path) -> Finding:
    """How a budget is held by an agent started as this process was; `proc` is this process's folder in /proc."""
    try:
        home = delegated_group(proc)
    except NotDelegated as error:
        text = f"budgets are held by RLIMIT_DATA and a watch: {error}"
        remedy = "for a limit that the kernel holds, run the agent as a systemd service with Delegate=memory"
        return Finding(State.NOTE, "enforcement", text, remedy)
    return Finding(State.OK, "enforcement", f"budgets are held by a cgroup of each task's own, in {home}, and a watch")


def check_store(folder: pathlib.Path) -> Finding:
    """Room under the store, and the right to write there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110 - pathlib's raises below what may not be entered
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(State.FAIL, "store", f"{there} is no folder that we may write to", "choose another store")
    free_bytes = shutil.disk_usage(there).free
    text = f"{_mb(free_bytes)} free under {folder}"
    if free_bytes <= RESERVE_BYTES:
        return Finding(State.FAIL, "store", text, f"{_mb(RESERVE_BYTES)} stay free, so nothing fits: make room")
    if free_bytes < LEAN_DISK_BYTES:
        return Finding(State.WARN, "store", text, "large emulators will not fit: make room")
    return Finding(State.OK, "store", text)


def check_broker(url: str, tls: TlsFiles | None = None) -> Finding:
    """Whether the broker lets us in, and how fast; with `tls`, whether both sides' certificates are in order."""
    begin = time.monotonic()
    try:
        where = address(url)
        answer = _knock(where, tls)
    except (ValueError, SettingsError) as error:
        return Finding(
            State.FAIL, "broker", f"{url} cannot be used: {error}", "see broker and tls of the configuration"
        )
    except (OSError, OverflowError) as error:  # the latter: a host that cannot be
        why = getattr(error, "strerror", None) or str(error)
        return Finding(State.FAIL, "broker", f"{url} cannot be reached: {why}", "is it running, and the address right?")
    time_ms = (time.monotonic() - begin) * 1e3
    if len(answer) < len(ACCEPTED) or answer[:2] != ACCEPTED[:2]:
        remedy = "is the port right? MQTT's is 1883, and 8883 over TLS"
        return Finding(State.FAIL, "broker", f"{url} does not speak MQTT", remedy)
    if answer[3]:
        why = REFUSALS.get(answer[3], f"return code {answer[3]}")
        return Finding(State.FAIL, "broker", f"{url} refuses us: {why}", "see the broker's log")
    if not (where.tls or where.is_loopback):
        return Finding(State.WARN, "broker", f"{url} answered in {time_ms:.0f} ms, without TLS", "use mqtts://")
    return Finding(State.OK, "broker", f"{url} answered in {time_ms:.0f} ms")


def _knock(where: Address, tls: TlsFiles | None) -> bytes:
    """What a broker answers to a CONNECT. Raises OSError, OverflowError, SettingsError, and ValueError."""
    wrap = context(tls) if tls is not None else None
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((where.host, where.port), timeout=CONNECT_S))
            if wrap is not None:
                connection = stack.enter_context(wrap.wrap_socket(connection, server_hostname=where.host))
            connection.sendall(_connect_packet(f"fedpeat-doctor-{os.getpid()}"))
            answer = connection.recv(4)
            if answer == ACCEPTED:
                connection.sendall(b"\xe0\x00")  # DISCONNECT
            return answer
    except ssl.SSLError as error:
        raise OSError(why_no_tls(error, where.host, tls) if tls is not None else str(error)) from error


def _connect_packet(client_id: str) -> bytes:
    """CONNECT of MQTT 3.1.1, clean session, no keep-alive: section 3.1 of the standard."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
    return bytes([0x10, len(body)]) + body


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    """What a fresh process says when it imports `module`; None when all is well."""
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=IMPORT_S, env=training_environment(1)
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {IMPORT_S:.0f} s"
    if done.returncode < 0:
        return f"it dies of {signal.Signals(-done.returncode).name}"
    return None if done.returncode == 0 else last_line(done.stderr, "it said nothing")


def _limit_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where limits on our memory may stand: our cgroup's and its ancestors', version 2 and version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        inner = pathlib.PurePosixPath(name.lstrip("/"))
        yield from (root / "sys/fs/cgroup" / top / part / file for part in (inner, *inner.parents))


def _limit_bytes(path: pathlib.Path) -> int | None:
    """The limit in a file; None where there is none, which version 1 writes as almost 2^63."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() and int(text) < 1 << 60 else None


def _text(path: pathlib.Path) -> str:
    """A kernel file's text, empty where this kernel does not have it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
