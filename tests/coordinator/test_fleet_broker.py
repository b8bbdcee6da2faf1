"""`fedpeat broker`: what it makes is whole, stays as it was, and lets in whom it names alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import shutil
from collections.abc import Iterator

import pytest
from cryptography import x509

from coordinator import authority, fleet_broker
from coordinator.authority import load_authority
from coordinator.cli import main
from edge_sdk import doctor
from edge_sdk.wire.endpoint import TlsFiles
from edge_sdk.wire.mqtt import V5, V311, MqttTransport
from edge_sdk.wire.transport import Connected, Disconnected, Event
from tests.brokers import FleetMosquitto, Mosquitto

PATIENCE_S = 30.0
HOST = "127.0.0.1"


@pytest.fixture
def fleet(tmp_path: pathlib.Path) -> Iterator[FleetMosquitto]:
    """A broker's folder for two devices; not started."""
    broker = FleetMosquitto(tmp_path / "garden")
    assert main(command("init", broker.folder, "a", "b", port=broker.port)) == 0
    yield broker
    broker.kill()


def command(name: str, folder: pathlib.Path, *devices: str, host: str = HOST, port: int = 8883) -> list[str]:
    """The command line."""
    options = ["--fleet", "garden", "--host", host, "--host", "localhost", "--port", str(port)]
    return ["broker", name, str(folder), *devices, *(options if name == "init" else [])]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file, by where it is."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first_event(url: str, files: TlsFiles | None, *, v5: bool = True) -> Event | None:
    """What becomes of a first attempt."""
    transport = MqttTransport(url, "garden/device/x", tls=files, newest=V5 if v5 else V311)
    try:
        return transport.receive(PATIENCE_S)
    finally:
        transport.close()


def refused(url: str, files: TlsFiles | None) -> str:
    """Why there is no connection, in one line."""
    event = first_event(url, files)
    assert isinstance(event, Disconnected)
    assert "\n" not in event.reason
    return event.reason


def test_keys_are_the_owners_alone(fleet: FleetMosquitto) -> None:
    """Every key is readable by its owner only, every certificate names one, and no two keys are alike."""
    keys = sorted(fleet.folder.rglob("*.key"))
    assert len(keys) == 5
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert len({path.read_bytes() for path in keys}) == 5
    names = {}
    for path in fleet.folder.rglob("client.crt"):
        (named,) = x509.load_pem_x509_certificate(path.read_bytes()).subject
        names[path.parent.name] = named.value
    assert names == {"a": "a", "b": "b", "coordinator": "@coordinator"}


def test_nothing_is_written_over(fleet: FleetMosquitto, capsys: pytest.CaptureFixture[str]) -> None:
    """A second init, and a device that is there, are refused in a line; more devices change nothing of it."""
    before = content(fleet.folder)
    for again in (command("init", fleet.folder, "c"), command("add", fleet.folder, "c", "a")):
        assert main(again) == 2
        assert "is there already" in capsys.readouterr().err
        assert content(fleet.folder) == before
    assert main(command("add", fleet.folder, "c")) == 0
    after = content(fleet.folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"devices/c/{name}" for name in ("ca.crt", "client.crt", "client.key")}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (command("init", pathlib.Path("x"), "a", "a"), "named twice"),
        (command("init", pathlib.Path("x"), "a/b"), "is no device name"),
        (command("init", pathlib.Path("x"), "@coordinator"), "is no device name"),
        (command("init", pathlib.Path("x"), host="mqtts://h:1"), "neither a host's name nor its address"),
        (["broker", "init", "x", "--fleet", "#", "--host", HOST], "is no fleet name"),
        (command("add", pathlib.Path("x"), "a"), "no authority: x/authority/ca.crt: No such file"),
        (command("revoke", pathlib.Path("x"), "a"), "no authority: x/authority/ca.crt: No such file"),
    ],
)
def test_wrong_input_makes_nothing(
    arguments: list[str],
    complaint: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that says what is wrong, exit status 2, and not a file."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_who_has_a_certificate_comes_in(fleet: FleetMosquitto) -> None:
    """By name and by address, in MQTT 5 and 3.1.1; the coordinator, the devices, one that was added while it ran."""
    fleet.start()
    assert main(command("add", fleet.folder, "later")) == 0
    for who in ("coordinator", "devices/a", "devices/later"):
        assert isinstance(first_event(fleet.url, fleet.files(who)), Connected)
    assert isinstance(first_event(f"mqtts://localhost:{fleet.port}", fleet.files("devices/a")), Connected)
    assert isinstance(first_event(fleet.url, fleet.files("devices/a"), v5=False), Connected)
    assert doctor.check_broker(fleet.url, fleet.files("devices/a")).state is doctor.State.OK


def test_the_broker_says_how_much_it_takes(fleet: FleetMosquitto) -> None:
    """In MQTT 5: no more than our longest message, so that no device can fill its memory with one."""
    fleet.start()
    event = first_event(fleet.url, fleet.files("devices/a"))
    assert isinstance(event, Connected)
    assert 1 << 20 < event.max_packet_bytes < (1 << 20) + (1 << 14)


def test_who_has_none_does_not_come_in(fleet: FleetMosquitto, tmp_path: pathlib.Path) -> None:
    """Plain, with a foreign certificate, with the broker's own, or a revoked one: refused, in a line that says why."""
    other = FleetMosquitto(tmp_path / "other")
    assert main(command("init", other.folder, "a")) == 0
    own, foreign = fleet.files("devices/a"), other.files("devices/a")
    assert main(command("revoke", fleet.folder, "b")) == 0
    fleet.start()
    assert "is it one of mqtts://" in refused(f"mqtt://{HOST}:{fleet.port}", None)
    assert f"not from the authority in {foreign.ca}" in refused(fleet.url, foreign)
    assert "not from the authority that the broker trusts" in refused(
        fleet.url, dataclasses.replace(foreign, ca=own.ca)
    )
    folder = fleet.folder / "broker"
    its = TlsFiles(ca=own.ca, certificate=folder / "broker.crt", key=folder / "broker.key")
    assert "refuses our certificate" in refused(fleet.url, its)
    assert "it is revoked" in refused(fleet.url, fleet.files("revoked/b.0"))
    found = doctor.check_broker(fleet.url, fleet.files("revoked/b.0"))
    assert found.state is doctor.State.FAIL
    assert "it is revoked" in found.text
    assert main(command("add", fleet.folder, "b")) == 0
    assert isinstance(first_event(fleet.url, fleet.files("devices/b")), Connected)


def test_a_revoked_name_stays_revoked(fleet: FleetMosquitto) -> None:
    """Its second certificate may be revoked as well, and others' after it; the list has all of them."""
    for device in ("b", "a"):
        assert main(command("revoke", fleet.folder, device)) == 0
        assert main(command("add", fleet.folder, device)) == 0
    assert main(command("revoke", fleet.folder, "b")) == 0
    listed = x509.load_pem_x509_crl((fleet.folder / "broker" / "revoked.crl").read_bytes())
    serials = {
        x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        for path in (fleet.folder / "revoked").glob("*/client.crt")
    }
    assert len(serials) == 3
    assert {one.serial_number for one in listed} == serials


def test_a_broker_that_is_another_is_not_believed(fleet: FleetMosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host's, a device that poses as the broker, one that ran out, one too early: each said as what it is."""
    device, broker = fleet.files("devices/a"), fleet.folder / "broker"
    made = load_authority(fleet.folder / "authority")
    posing = fleet.folder / "devices" / "b"

    def answers_with(certificate: pathlib.Path, key: pathlib.Path) -> str:
        fleet.kill()
        shutil.copy(certificate, broker / "broker.crt")
        shutil.copy(key, broker / "broker.key")
        fleet.start()
        return refused(fleet.url, device)

    made.issue_broker(["10.1.2.3", "broker.local"], fleet.folder / "elsewhere", 10)
    elsewhere = fleet.folder / "elsewhere"
    said = answers_with(elsewhere / "broker.crt", elsewhere / "broker.key")
    assert f"the broker's certificate is not for {HOST}" in said
    assert "is not a broker's" in answers_with(posing / "client.crt", posing / "client.key")
    now = dt.datetime.now(dt.timezone.utc)
    monkeypatch.setattr(authority, "_now", lambda: now - dt.timedelta(days=100))
    made.issue_broker([HOST], fleet.folder / "old", 10)
    said = answers_with(fleet.folder / "old" / "broker.crt", fleet.folder / "old" / "broker.key")
    assert "is expired, or this machine's clock is wrong" in said
    monkeypatch.setattr(authority, "_now", lambda: now + dt.timedelta(days=100))
    made.issue_broker([HOST], fleet.folder / "early", 10)
    said = answers_with(fleet.folder / "early" / "broker.crt", fleet.folder / "early" / "broker.key")
    assert "is not valid yet: is this machine's clock right?" in said


def test_tls_where_nobody_speaks_it(fleet: FleetMosquitto, mosquitto: Mosquitto) -> None:
    """A plain broker's port under mqtts: the line asks for the port."""
    said = refused(f"mqtts://{HOST}:{mosquitto.port}", fleet.files("devices/a"))
    assert "speak TLS there" in said


def test_a_certificate_that_ran_out_is_said(fleet: FleetMosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own: the broker refuses it, and the device says which file."""
    now = dt.datetime.now(dt.timezone.utc)
    monkeypatch.setattr(authority, "_now", lambda: now - dt.timedelta(days=100))
    fleet_broker.add(fleet.folder, ["old"], days=10)
    fleet.start()
    said = refused(fleet.url, fleet.files("devices/old"))
    assert "devices/old/client.crt: it is expired" in said


def test_it_can_lie_elsewhere_on_the_brokers_machine(tmp_path: pathlib.Path) -> None:
    """With --at every path of the configuration is there, and none is here."""
    assert main([*command("init", tmp_path / "x"), "--at", "/etc/mosquitto/garden"]) == 0
    text = (tmp_path / "x" / "broker" / "mosquitto.conf").read_text()
    paths = [line.split()[1] for line in text.splitlines() if "file " in line]
    assert len(paths) == 5
    assert all(path.startswith("/etc/mosquitto/garden/") for path in paths)
    assert {pathlib.Path(path).name for path in paths} <= {path.name for path in (tmp_path / "x" / "broker").iterdir()}
