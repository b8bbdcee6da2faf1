"""The doctor sees what keeps a device from working, and says what helps."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading

import pytest

from edge_sdk import doctor
from edge_sdk.doctor import State
from tests.brokers import Mosquitto, free_port

ROOT = pathlib.Path(__file__).parents[2]
PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08
"""


def test_this_machine_can_work(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where these tests run all libraries load: status 0, a line for each check, no failure."""
    assert doctor.run(None, tmp_path / "store") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"(ok  |note|warn)  \S+ +\S.*", line) for line in lines), lines
    checks = [line.split()[1] for line in lines]
    for check in ("python", "numpy", "onnxruntime", "paho-mqtt", "msgpack", "psutil", "tokenizers", "cpu", "memory"):
        assert checks.count(check) == 1
    assert checks[-4:] == ["cgroup", "enforcement", "config", "store"]
    assert not list(tmp_path.iterdir())


def test_a_failure_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """One check that prevents work makes the status 1."""
    assert doctor.run((f"mqtt://127.0.0.1:{free_port()}", None), None) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL  broker ")


@pytest.mark.parametrize(
    ("version", "machine", "state", "remedy"),
    [
        ((3, 10, 0), "aarch64", State.OK, ""),
        ((3, 14, 1), "x86_64", State.OK, ""),
        ((3, 9, 2), "aarch64", State.FAIL, "Python 3.10 or newer"),
        ((3, 11, 2), "armv7l", State.FAIL, "install a 64-bit system"),
    ],
)
def test_python_and_machine(version: tuple[int, ...], machine: str, state: State, remedy: str) -> None:
    """Old Pythons and 32-bit systems have no wheels."""
    found = doctor.check_python(version, machine)
    assert found.state is state
    assert remedy in found.remedy


def test_a_library_that_is_absent_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Not installed, not importable, and killed by its own import are three findings, each with a remedy."""
    assert doctor.check_library("fedpeat-no-such", "x").text == "is not installed"
    (tmp_path / "raises.py").write_text("raise ImportError('libgomp.so.1: no such file')")
    (tmp_path / "dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    raises, dies = (doctor.check_library("numpy", module) for module in ("raises", "dies"))
    assert raises.state is dies.state is State.FAIL
    assert raises.text.endswith("cannot be imported: ImportError: libgomp.so.1: no such file")
    assert dies.text.endswith("it dies of SIGILL")
    assert raises.remedy == "pip install --force-reinstall numpy"


def test_versions_known_to_die_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An excluded version is a failure without being tried."""
    version = doctor.check_library("numpy", "numpy").text
    monkeypatch.setattr(doctor, "EXCLUDED", {"numpy": (version,)})
    found = doctor.check_library("numpy", "no_such_module")
    assert found.state is State.FAIL
    assert found.remedy == "pip install --upgrade numpy"


def test_the_text_extra_is_optional() -> None:
    """Without it token arrays still work, so its absence is a note."""
    found = doctor.check_optional("fedpeat-no-such", "pip install 'fedpeat[text]'")
    assert (found.state, found.remedy) == (State.NOTE, "pip install 'fedpeat[text]'")


def test_processors_are_named() -> None:
    """A Raspberry Pi 4 by its cores; an x86 without AVX2 with a warning."""
    assert doctor.check_cpu(PI4, "aarch64").text == "aarch64, 2 core(s), Cortex-A72: asimd"
    assert doctor.check_cpu("processor : 0\nflags : sse2 avx2\n", "x86_64").state is State.OK
    assert doctor.check_cpu("processor : 0\nflags : sse2\n", "x86_64").state is State.WARN


def test_little_memory_is_a_warning() -> None:
    """What counts is what is available."""
    much, little = (f"MemTotal: 1000000 kB\nMemAvailable: {size} kB\n" for size in (800_000, 100_000))
    assert doctor.check_memory(much).state is State.OK
    found = doctor.check_memory(little)
    assert (found.state, found.text) == (State.WARN, "102 MB of 1,024 MB available")


CGROUP = "sys/fs/cgroup"


def tree(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    """A root of a file system with these kernel files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_smallest_limit_counts(tmp_path: pathlib.Path) -> None:
    """A limit may stand in our cgroup or in one above it; `max` is none."""
    root = tree(tmp_path, {"proc/self/cgroup": "0::/user/app\n", f"{CGROUP}/cgroup.controllers": "cpu memory\n"})
    assert doctor.check_cgroup(root).text == "memory controller on, no limit set"
    tree(root, {f"{CGROUP}/user/app/memory.max": "max\n"})
    assert doctor.check_cgroup(root).text == "memory controller on, no limit set"
    tree(root, {f"{CGROUP}/user/app/memory.max": "900000000\n", f"{CGROUP}/user/memory.max": "512000000\n"})
    found = doctor.check_cgroup(root)
    assert (found.state, found.text) == (State.OK, "memory is limited to 512 MB: choose the budget below it")


def test_limits_of_the_first_version_count(tmp_path: pathlib.Path) -> None:
    """Version 1 has a hierarchy of its own for memory, and writes no limit as almost 2^63."""
    limit = f"{CGROUP}/memory/app/memory.limit_in_bytes"
    cgroups = "3:cpu:/\n4:cpuacct,memory:/app\n0::/\n"
    root = tree(tmp_path, {"proc/self/cgroup": cgroups, limit: "9223372036854771712\n"})
    assert doctor.check_cgroup(root).text == "memory controller on, no limit set"
    tree(root, {limit: "256000000\n"})
    assert "limited to 256 MB" in doctor.check_cgroup(root).text


def test_a_raspberry_pi_without_the_memory_controller(tmp_path: pathlib.Path) -> None:
    """As Raspberry Pi OS starts it: a warning that names the file and the word; elsewhere a note."""
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", f"{CGROUP}/cgroup.controllers": "cpu io pids\n"})
    assert doctor.check_cgroup(root).state is State.NOTE
    tree(root, {"proc/cmdline": "console=tty1 cgroup_disable=memory rootwait\n"})
    found = doctor.check_cgroup(root)
    assert found.state is State.WARN
    assert "cgroup_enable=memory into /boot/firmware/cmdline.txt" in found.remedy


def test_how_a_budget_is_held_is_told(tmp_path: pathlib.Path) -> None:
    """Where a group is ours to divide, by the kernel; elsewhere by us, why, and what would help."""
    group = tree(tmp_path / "group", dict.fromkeys(("memory.max", "cgroup.subtree_control"), "max\n"))
    tree(group, {"cgroup.procs": f"{os.getpid()}\n", "cgroup.controllers": "memory pids\n"})
    mounted = f"31 23 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    proc = tree(tmp_path / "proc", {"cgroup": "0::/group\n", "mountinfo": mounted})
    assert doctor.check_enforcement(proc).state is State.OK
    tree(group, {"cgroup.controllers": "pids\n"})
    found = doctor.check_enforcement(proc)
    assert (found.state, found.text) == (
        State.NOTE,
        f"budgets are held by RLIMIT_DATA and a watch: no memory controller in {group}",
    )
    assert "Delegate=memory" in found.remedy


def test_the_store_need_not_be_there_yet(tmp_path: pathlib.Path) -> None:
    """The folder in which it would be made is looked at, and nothing is made."""
    assert doctor.check_store(tmp_path / "a" / "b").state in {State.OK, State.WARN}
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be(tmp_path: pathlib.Path) -> None:
    """A file in its place, or in that of a folder above it."""
    (tmp_path / "file").touch()
    assert doctor.check_store(tmp_path / "file" / "store").state is State.FAIL
    assert doctor.check_store(tmp_path / "file").state is State.FAIL


# Root may write anywhere, so it becomes another user, once all is imported that this user may not be able to read.
UNPRIVILEGED = """
import os, pathlib, sys
from edge_sdk import doctor
if os.geteuid() == 0:
    os.setuid(65534)
print(doctor.check_store(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize("mode", [0o555, 0o444])
def test_a_store_that_may_not_be_written(mode: int) -> None:
    """A folder that nobody may write to, or even enter, is a failure, whoever runs these tests."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be reached by another user
        pathlib.Path(folder).chmod(mode)
        command = [sys.executable, "-c", UNPRIVILEGED, f"{folder}/store"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("FAIL  store ")
    assert f"{folder} is no folder that we may write to" in done.stdout


def test_a_real_broker_answers(mosquitto: Mosquitto) -> None:
    """CONNECT is answered by CONNACK; once the broker is gone, it is a failure."""
    found = doctor.check_broker(mosquitto.url)
    assert found.state is State.OK, found
    assert re.search(r"answered in \d+ ms", found.text)
    mosquitto.kill()
    assert doctor.check_broker(mosquitto.url).state is State.FAIL


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\x20\x02\x00\x04", "it wants a user name and password"),
        (b"\x20\x02\x00\x05", "it does not let us in"),
        (b"\x20\x02\x00\x63", "return code 99"),
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak MQTT"),
        (b"", "does not speak MQTT"),
    ],
)
def test_other_answers_are_explained(answer: bytes, complaint: str) -> None:
    """A refusal is told from a server of something else."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = doctor.check_broker(f"mqtt://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert found.state is State.FAIL
    assert complaint in found.text


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1:99999", "mqtt://no-such-host.invalid", "mqtt://" + "a" * 70])
def test_addresses_that_cannot_be(url: str) -> None:
    """A port or host that cannot be is a finding, not a crash."""
    found = doctor.check_broker(url)
    assert found.state is State.FAIL
    assert "\n" not in str(found)
