"""Emulated Raspberry Pis: qemu's user mode over Debian's arm64 files, with the wheels that a Pi would install.

What is downloaded is kept in the user's cache folder (see `benchmarks.fetch`): Debian's packages by apt, which checks
their signatures, in an apt of their own that knows nothing of this machine's; the wheels by pip, which checks the
SHA-256 pinned here. Nothing is installed, and neither root, binfmt nor a container is needed.

Each CPU has a root of its own. qemu looks for every absolute path there before it looks at this machine: that is how a
library which reads /proc/cpuinfo or /sys is told of a Pi. (onnxruntime 1.31.1 under qemu 7.2 dies of this machine's.)
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.fetch import STANDARD_ERROR, FetchError, say
from export.cache import cache_folder, cached

SUITE, PYTHON = "bookworm", "3.11"  # what Raspberry Pi OS is made from, and its Python
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libcrypt1",
    "libssl3",
    "libuuid1",
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
)
QEMU = "qemu-user-static"
QEMU_FILE = "qemu-aarch64-static"
GLIBC = ("2_28", "2_27", "2_17")  # wheels are tagged by the oldest glibc that they run on
CORES = 4
SOURCE = pathlib.Path(__file__).parents[1]
MIRROR = re.compile(rf"'([^']*/debian)/+dists/{SUITE}/[^']*'")


@dataclass(frozen=True, slots=True)
class Cpu:
    """A core as qemu calls it, the board that has four of it, and what Linux says of it in /proc/cpuinfo there."""

    name: str
    board: str
    part: int
    variant: int
    revision: int
    features: str


ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"  # no SVE
CPUS = (
    Cpu("cortex-a53", "Raspberry Pi 3", 0xD03, 0, 4, ARMV8_0),
    Cpu("cortex-a72", "Raspberry Pi 4", 0xD08, 0, 3, ARMV8_0),
    Cpu("cortex-a76", "Raspberry Pi 5", 0xD0B, 4, 1, ARMV8_2),
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel for aarch64 and this Python: `sha256` in hexadecimal."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Board:
    """An emulated board with a set of wheels: what it takes to run Python on it."""

    qemu: pathlib.Path
    root: pathlib.Path
    cpu: Cpu
    wheels: tuple[Wheel, ...]
    site: pathlib.Path

    def version(self, name: str) -> str:
        """The version of one of its wheels."""
        return next(wheel.version for wheel in self.wheels if wheel.name == name)

    def python(self, *arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
        """Run Python in `folder`, with the wheels and this repository; a signal ends it as it would any process.

        Nothing of this machine's environment is passed on.
        """
        environment = {"PYTHONPATH": f"{self.site}{os.pathsep}{SOURCE}", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["ORT_DISABLE_TELEMETRY"] = "1"  # set by the engine, but the control runs without it
        interpreter = str(self.root / "usr" / "bin" / f"python{PYTHON}")
        command = [str(self.qemu), "-L", str(self.root), "-cpu", self.cpu.name, interpreter, "-S", *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def board(cpu: Cpu, wheels: tuple[Wheel, ...], cache: pathlib.Path | None = None) -> Board:
    """The emulated board, its parts fetched where they are missing: about 73 MB once, then the wheels.

    Raises FetchError.
    """
    if platform.machine() != "x86_64":
        msg = f"this machine is {platform.machine()}; boards are emulated, and compared with, x86_64"
        raise FetchError(msg)
    cache = cache or cache_folder()
    parts = (SUITE, PACKAGES, QEMU, [(cpu, view(cpu)) for cpu in CPUS])
    machine = cached(cache / f"aarch64-{SUITE}-{_digest(parts)}", _build_machine)
    site = cached(cache / f"aarch64-wheels-{_digest(wheels)}", lambda folder: _install(wheels, folder))
    return Board(machine / QEMU_FILE, machine / cpu.name, cpu, wheels, site)


def qemu_version(board: Board) -> str:
    """What the emulator calls itself."""
    done = subprocess.run([board.qemu, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def view(cpu: Cpu) -> Mapping[str, str]:
    """The files under / by which a library learns what CPU it has: a Pi's four equal cores, by path and content."""
    processor = (
        f"Features\t: {cpu.features}\n"
        "CPU implementer\t: 0x41\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: {cpu.variant:#x}\n"
        f"CPU part\t: {cpu.part:#x}\n"
        f"CPU revision\t: {cpu.revision}\n\n"
    )
    everyone = f"0-{CORES - 1}\n"
    files = {"proc/cpuinfo": "".join(f"processor\t: {core}\n{processor}" for core in range(CORES))}
    files |= {f"sys/devices/system/cpu/{name}": everyone for name in ("possible", "present", "online")}
    for core in range(CORES):
        home = f"sys/devices/system/cpu/cpu{core}"
        files |= {
            f"{home}/topology/physical_package_id": "0\n",
            f"{home}/topology/core_id": f"{core}\n",
            f"{home}/topology/core_siblings_list": everyone,
            f"{home}/topology/cluster_cpus_list": everyone,
            f"{home}/topology/thread_siblings_list": f"{core}\n",
            f"{home}/cpufreq/cpuinfo_max_freq": "1800000\n",
            f"{home}/cpufreq/cpuinfo_min_freq": "600000\n",
        }
    return files


def debian_mirror(uris: str) -> str:
    """The mirror that this machine's apt has the suite from, out of `apt-get update --print-uris`.

    Raises FetchError where apt knows none, as on anything but Debian.
    """
    found = MIRROR.search(uris)
    if found is None:
        msg = f"apt's configuration names no mirror of Debian {SUITE}: run this on Debian, or in its image"
        raise FetchError(msg)
    return found[1]


def requirements(wheels: Sequence[Wheel]) -> str:
    """The wheels as a requirements file whose hashes pip checks."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _build_machine(folder: pathlib.Path) -> None:
    """qemu, and a root for each CPU whose files are links to the same bytes."""
    say(f"fetching qemu and Debian {SUITE} for arm64 with apt (73 MB)")
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = pathlib.Path(name)
        known = ["apt-get", "update", "--print-uris", f"-oDir::State::Lists={scratch}"]
        mirror = debian_mirror(_call(known, stdout=subprocess.PIPE))
        (archive,) = _debs(scratch / "amd64", "amd64", mirror, [QEMU])
        _take_program(archive, folder / QEMU_FILE)
        root = scratch / "root"
        for archive in _debs(scratch / "arm64", "arm64", mirror, PACKAGES):
            _call(["dpkg", "-x", str(archive), str(root)])
        for cpu in CPUS:
            shutil.copytree(root, folder / cpu.name, symlinks=True, copy_function=os.link)
            for path, content in view(cpu).items():
                target = folder / cpu.name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="ascii")


def _debs(home: pathlib.Path, architecture: str, mirror: str, packages: Sequence[str]) -> list[pathlib.Path]:
    """The packages' archives, by an apt whose configuration, lists and cache are all under `home`."""
    for path in ("etc/apt/preferences.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "debs"):
        (home / path).mkdir(parents=True)
    status, sources = home / "status", home / "sources.list"
    status.touch()
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n", encoding="ascii")
    settings = {
        "Dir": home,
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Status": status,
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "root",  # for root alone: the user _apt cannot look into our folder
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _call([*apt, "update"])
    _call([*apt, "download", *packages], home / "debs")
    return sorted((home / "debs").glob("*.deb"))


def _take_program(archive: pathlib.Path, target: pathlib.Path) -> None:
    """Of qemu's package, which unpacks to 300 MB, the one program that is needed."""
    unpacking = subprocess.Popen(["dpkg", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    with unpacking, tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(f"/{QEMU_FILE}") else None
            if content is not None:
                with target.open("xb") as out:
                    shutil.copyfileobj(content, out)
    target.chmod(0o755)


def _install(wheels: Sequence[Wheel], folder: pathlib.Path) -> None:
    say(f"fetching {', '.join(f'{wheel.name} {wheel.version}' for wheel in wheels)} for aarch64 with pip")
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        asked = pathlib.Path(name, "requirements.txt")
        asked.write_text(requirements(wheels), encoding="ascii")
        version = PYTHON.replace(".", "")
        # --ignore-requires-python: pip would ask that of the Python it runs in, too
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--require-hashes", "--only-binary=:all:", "--ignore-requires-python", "--root-user-action=ignore"]
        pip += ["--implementation=cp", f"--python-version={PYTHON}", f"--abi=cp{version}", "--abi=abi3"]
        pip += [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC]
        _call([*pip, f"--target={folder}", f"--requirement={asked}"])


def _call(command: Sequence[str], folder: pathlib.Path | None = None, stdout: int = STANDARD_ERROR) -> str:
    """Run a client; its words are for the user, except what it says on a `stdout` of PIPE. Raises FetchError."""
    try:
        return subprocess.run(command, check=True, stdout=stdout, text=True, cwd=folder).stdout or ""
    except FileNotFoundError as error:
        msg = f"{command[0]} is needed to make an emulated board, and is not on PATH"
        raise FetchError(msg) from error
    except subprocess.CalledProcessError as error:
        msg = f"{pathlib.Path(command[0]).name} failed (exit {error.returncode}, its own words above)"
        raise FetchError(msg) from error
