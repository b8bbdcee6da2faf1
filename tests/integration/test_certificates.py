"""A fleet whose broker knows everybody by certificate: processes as a user starts them, over mutual TLS."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from coordinator.cli import main
from tests.brokers import FleetMosquitto
from tests.integration.conftest import Processes, Tiny, assert_counted_once, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROUND = {"count": 1, "devices": 2, "quorum": 2, "deadline_s": 100.0, "wait_s": 100.0}


@pytest.fixture
def fleet(tmp_path: pathlib.Path, tiny: Tiny) -> Iterator[Processes]:
    """A running Mosquitto as `fedpeat broker init` makes it for two devices and a thief's."""
    broker = FleetMosquitto(tmp_path / "fleet")
    options = ["--fleet", "test", "--host", broker.host, "--port", str(broker.port)]
    assert main(["broker", "init", str(broker.folder), "a", "b", "thief", *options]) == 0
    broker.start()
    found = Processes(tmp_path, tiny, broker)
    yield found
    found.close()
    broker.kill()


def test_a_round_over_mutual_tls(fleet: Processes) -> None:
    """Two devices with their certificates complete a round. One that calls itself b and shows another's is told no."""
    fleet.device("b", certificate="thief")
    wait_until(lambda: "no broker" in fleet.log("b"), "the thief is refused")
    assert "not authorized; see its access list" in fleet.log("b")
    assert fleet.end("b") == 130
    fleet.serve(rounds=ROUND)
    fleet.device("a")
    fleet.device("b")
    assert fleet.finish() == 0, fleet.log("coordinator")
    assert_counted_once(fleet.history(), rounds=1)
    assert {row.device for row in fleet.history().results} == {"a", "b"}


def test_who_has_no_certificate_is_refused_in_a_line(fleet: Processes) -> None:
    """No file, and no mqtts without one: an exit status and a line, at once. A revoked one: a line for each attempt."""
    assert main(["broker", "revoke", str(fleet.broker.folder), "thief"]) == 0
    fleet.broker.kill()
    fleet.broker.start()
    fleet.device("thief")
    assert fleet.running.pop("thief").wait(60) == 2
    assert fleet.log("thief").count("\n") == 1
    assert "devices/thief/ca.crt: cannot be read: No such file" in fleet.log("thief")
    fleet.device("a", certificate="../revoked/thief.0")
    wait_until(lambda: fleet.log("a").count("no broker") > 1, "the device has tried twice")
    assert fleet.log("a").count("it is revoked; trying again in") > 1
