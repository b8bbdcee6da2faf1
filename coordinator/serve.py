"""`fedpeat serve` from beginning to end: ledger, broker, build, rounds, checkpoint, report.

Each step leaves on disk what the next run of the same command needs to skip it, so a coordinator that was stopped, or
killed, goes on where it was. Everything that was started here is ended here, whichever way this is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from coordinator import example_privacy
from coordinator.broker import Broker
from coordinator.builder import Artifact, build, check_initial, require_folders, write_json
from coordinator.config import AUTO, BrokerConfig, Config
from coordinator.daemon import Daemon
from coordinator.errors import ConfigError
from coordinator.history import History, read_history
from coordinator.jobs import Done, Failed, Jobs, Line, Progress
from coordinator.ledger import Ledger
from coordinator.participant import Participant
from coordinator.places import ledger_path, received_folder, trust_folder
from coordinator.privacy import standing
from coordinator.registry import Enrolment, Registry
from coordinator.report import checks, make_report
from coordinator.round_states import State
from coordinator.screen import Screen, check_line, evaluation_table, result_table
from edge_sdk.wire.allocator import keep_freed_memory
from edge_sdk.wire.blobs import Blob, BlobStore, written_atomically
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.endpoint import address, check_broker
from edge_sdk.wire.lifeline import Stop, stop_on_signals
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.settings import SettingsError
from edge_sdk.wire.topics import COORDINATOR

T = TypeVar("T")

OK, FAILED, STOPPED = 0, 1, 130
WAIT_S: Final = 0.1
CHECKPOINT: Final = "checkpoint"


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """Ctrl-C, or SIGTERM."""


def serve(config: Config, screen: Screen, *, insecure: bool, restored: bool = False) -> int:
    """Run to the end; the exit status. Raises CoordinatorError, OSError, sqlite3.Error."""
    keep_freed_memory()
    _check_broker(config.broker, insecure=insecure)
    check_enrolment(config, insecure=insecure)
    require_folders(config)  # before anything is made
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        config.out.mkdir(parents=True, exist_ok=True)
        ledger = stack.enter_context(Ledger(ledger_path(config), config.name, config.digest()))
        jobs = Jobs()
        stack.callback(jobs.close)
        broker, revive = _broker(config, screen, stack)
        try:
            house = House(screen, jobs, stop, revive)
            artifact = house.wait_for("build", lambda say: build(config, jobs, say))
            check_initial(artifact)
            state = _rounds(config, artifact, ledger, house, broker, insecure=insecure, restored=restored)
            return _finish(config, artifact, house, state)
        except Stopped:
            screen.line("stopped; `fedpeat serve` with the same configuration goes on from here", "yellow")
            return STOPPED


def check_enrolment(config: Config, *, insecure: bool) -> None:
    """Take the first key that comes with a name on this machine alone. Raises ConfigError."""
    if config.broker.url == AUTO or config.trust.enrolment is not Enrolment.OPEN or insecure:
        return
    broker = address(config.broker.url)
    if not broker.is_loopback:
        msg = (
            "trust.enrolment is 'open', which takes the first key that comes with a device's name, "
            f"and broker {broker.host} is another machine; set it to 'token', or pass --insecure"
        )
        raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class House:
    """What goes on beside every step: the screen, jobs, the wish to stop, and a broker to be kept alive."""

    screen: Screen
    jobs: Jobs
    stop: Stop
    revive: Callable[[], bool]

    def keep(self) -> None:
        """Bring the broker back if it died."""
        if self.revive():
            self.screen.line("the broker died and was started again", "yellow")

    def wait_for(self, job: str, work: Callable[[Callable[[Line], None]], T]) -> T:
        """Do `work` as a job and wait for it. Raises what it raises, and Stopped."""
        self.jobs.start(job, job, work)
        while not self.stop.signal:
            for outcome in self.jobs.poll():
                if isinstance(outcome, Progress):
                    self.screen.line(_progress_line(outcome))
                elif isinstance(outcome, Failed) and outcome.job == job:
                    raise outcome.error
                elif isinstance(outcome, Done) and outcome.job == job:
                    return cast("T", outcome.value)
            self.keep()
            time.sleep(WAIT_S)
        raise Stopped


def _progress_line(progress: Progress) -> str:
    line = progress.line
    level = f" {line['level']}" if line.get("level") else ""
    of = f" {line['done']}/{line['of']}" if "of" in line else ""
    return f"{progress.job}{of}: {line.get('stage', '')}{level}"


def _check_broker(broker: BrokerConfig, *, insecure: bool) -> None:
    """Raises ConfigError."""
    if broker.url == AUTO and broker.tls is None:
        return
    try:
        check_broker(broker.url, broker.tls, insecure=insecure)
    except SettingsError as error:
        raise ConfigError(str(error)) from error


def _broker(config: Config, screen: Screen, stack: contextlib.ExitStack) -> tuple[BrokerConfig, Callable[[], bool]]:
    """The broker, its URL also written to `broker.url` for whoever starts devices, and how to bring it back."""
    revive: Callable[[], bool] = bool  # a broker that is not ours is not ours to start
    if config.broker.url == AUTO:
        broker = Broker(config.out / "broker", config.fleet)
        stack.callback(broker.close)
        url, revive = broker.url, broker.revive
        screen.line(f"broker: {broker.what} at {url}, on this machine alone")
    else:
        url = config.broker.url
        screen.line(f"broker: {url}")
    with written_atomically(config.out / "broker.url", "broker-url") as file:
        file.write(f"{url}\n".encode())
    return dataclasses.replace(config.broker, url=url), revive


def _rounds(
    config: Config,
    artifact: Artifact,
    ledger: Ledger,
    house: House,
    broker: BrokerConfig,
    *,
    insecure: bool,
    restored: bool,
) -> State:
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(Registry(trust_folder(config)))
        transport = MqttTransport(
            broker.url,
            f"{config.fleet}/coordinator",
            tls=broker.tls,
            user=COORDINATOR,
            max_packet_bytes=broker.max_packet_bytes,
        )
        stack.callback(transport.close)
        participant = None
        if config.participant is not None:
            token = registry.invite(config.participant.device)
            participant = Participant(config, config.participant, broker.url, token, insecure=insecure)
            stack.callback(participant.close)

        def keep() -> None:
            house.keep()
            if participant is not None:
                participant.keep()

        daemon = Daemon(config, artifact, ledger, registry, transport, house.jobs, house.screen, restored=restored)
        with house.screen:
            state = daemon.run(lambda: house.stop.signal != 0, keep)
    if state is State.STOPPED:
        raise Stopped
    return state


def _finish(config: Config, artifact: Artifact, house: House, state: State) -> int:
    """Checkpoint, report, curves, tables; the exit status."""
    history = read_history(ledger_path(config))
    if state is State.DONE:
        house.screen.line("checkpoint: the adapter goes into the full model")
        house.wait_for("checkpoint", lambda say: _plug_in(config, artifact, history, house.jobs, say))
    damaged = house.wait_for("verification", lambda _say: _damaged(config, artifact, history))
    found = checks(history, config, damaged)
    path = config.out / "report.json"
    write_json(path, make_report(history, config, state.value, found), "report")
    curves = [sys.executable, "-m", "coordinator.plots", str(path), str(config.out / "curves.png")]
    house.wait_for("curves", lambda say: house.jobs.process(curves, say))
    house.screen.table(result_table(history))
    if config.evaluation is not None:
        house.screen.table(evaluation_table(history, config.levels[-1].name))
    if config.privacy is not None:
        central = config.central_privacy is not None
        promised = standing(config, history.spent) if central else example_privacy.standing(config, history)
        house.screen.line(f"privacy: {promised}", "bold")
    for check in found:
        house.screen.line(*check_line(check))
    house.screen.line(f"report, curves and checkpoint are in {config.out}")
    return OK if state is State.DONE and all(check.passed for check in found) else FAILED


def _plug_in(config: Config, artifact: Artifact, history: History, jobs: Jobs, say: Callable[[Line], None]) -> None:
    out, making = config.out / CHECKPOINT, config.out / f"{CHECKPOINT}.making"
    crash_point("checkpoint.begun")
    shutil.rmtree(making, ignore_errors=True)
    adapter = artifact.store.path(history.adapters[-1].sha256)
    command = [config.model.dir, artifact.full.path, adapter, "--out", making]
    jobs.process([sys.executable, "-m", "export.cli", "plug-in", *map(str, command)], say)
    crash_point("checkpoint.made")
    shutil.rmtree(out, ignore_errors=True)  # not before: whoever stops us keeps the one of last time
    crash_point("checkpoint.removed")
    making.rename(out)
    crash_point("checkpoint.renamed")


def _damaged(config: Config, artifact: Artifact, history: History) -> list[str]:
    """Blobs of adapters and committed deltas that are gone or not what they were."""
    received = BlobStore(received_folder(config))
    wanted = [(artifact.store, Blob(a.sha256, a.size_bytes)) for a in history.adapters]
    wanted += [(received, Blob(r.sha256, r.size_bytes)) for r in history.results]
    return [blob.sha256 for store, blob in wanted if not store.is_whole(blob)]
