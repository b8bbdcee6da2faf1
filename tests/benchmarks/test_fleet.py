"""A fleet in one process is the fleet: the real coordinator and agents, and what a worker would have learned."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet import Connect, Engine, Member, Run, Unfinished, play
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import write_image_folder
from edge_sdk.engine.train import StepReport
from edge_sdk.environment import training_environment
from edge_sdk.order import WorkerOrder
from edge_sdk.wire import codec
from edge_sdk.wire.delta import Delta, decode_delta
from edge_sdk.wire.messages import DeltaCodec, Report
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.transport import Will
from edge_sdk.worker import Failure, do
from tests.brokers import Mosquitto
from tests.edge_sdk.orders import make_order

DEVICES, PARTICIPANTS, ROUNDS = 6, 2, 3


@pytest.fixture(scope="module")
def engine(tiny_vision: pathlib.Path) -> Iterator[Engine]:
    """One engine for all that is played here."""
    found = Engine(tiny_vision, threads=2)
    yield found
    found.close()


def squares(path: pathlib.Path, seed: int, classes: int = 3) -> pathlib.Path:
    """Images that are as bright as their label says."""
    labels = np.arange(24) % classes
    pixels = np.random.default_rng(seed).integers(0, 80, (24, 1, 9, 9)) + (240 // classes) * labels[:, None, None, None]
    write_image_folder(path, np.minimum(pixels, 255), labels)
    return path


def played(
    folder: pathlib.Path,
    engine: Engine,
    *,
    seed: int = 0,
    classes: int = 3,
    connect: Connect | None = None,
    crowd: int = 0,
    **changes: Any,
) -> Run:
    """A few rounds of a few devices; `changes` go to the configuration."""
    table = {
        "name": "test",
        "model": {"dir": "model", "task": "image-classification", "labels": ["bad", "so-so", "good"]},
        "adapter": {"rank": 2, "alpha": 16},
        "levels": [{"name": "fp32"}],
        "rounds": {"count": ROUNDS, "devices": DEVICES, "min_devices": DEVICES, "participants": PARTICIPANTS},
        "training": {"steps": 3, "batch": 4, "learning_rate": 1e-2, "seed": seed},
    }
    homes = [squares(folder / f"d{k}", k, classes) for k in range(DEVICES)]
    members = [Member(home.name, DataConfig(kind=DataKind.IMAGE_ARRAYS, path=home)) for home in homes]
    return play({**table, **changes}, members, engine, folder, connect, crowd=crowd)


def over(url: str, client: str, will: Will | None) -> MqttTransport:
    """A transport, for processes that find it by its name."""
    return MqttTransport(url, client, will)


def test_as_many_take_part_as_were_asked_for(tmp_path: pathlib.Path, engine: Engine) -> None:
    """Each round has its own draw of devices, all that is sent is counted, and the adapter gets better."""
    run = played(tmp_path, engine)
    taking_part = [{row.device for row in run.used(round_)} for round_ in range(1, ROUNDS + 1)]
    assert [len(devices) for devices in taking_part] == [PARTICIPANTS] * ROUNDS
    assert len(set.union(*taking_part)) > PARTICIPANTS
    assert len(run.history.devices) == DEVICES
    adapter_bytes, results = run.history.adapters[0].size_bytes, run.history.results
    sent = [row.size_bytes for row in results]
    down, up = run.wire_bytes(ROUNDS)
    assert up == sum(sent) == sum(row.received_bytes for row in run.history.traffic)
    assert down == sum(row.round > 1 for row in results) * adapter_bytes
    assert down == sum(row.sent_bytes for row in run.history.traffic)
    test = squares(tmp_path / "test", seed=100)
    before, after = (engine.evaluate(run.built.full.blob, run.adapter(version), test) for version in (0, ROUNDS))
    assert after.loss < before.loss
    assert after.rows == 24


def test_a_seed_gives_the_same_adapters_again(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> None:
    """Whoever is first in a round: the draw, the rows and the mean are the seed's."""
    same, again, other = (
        [row.sha256 for row in played(tmp_path_factory.mktemp("run"), engine, seed=seed).history.adapters]
        for seed in (1, 1, 2)
    )
    assert same == again
    assert same[1:] != other[1:]


def test_in_processes_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, mosquitto: Mosquitto
) -> None:
    """Devices that share processes, over a real broker, make the adapters that they make in one."""
    connect = functools.partial(over, mosquitto.url)
    spread = played(tmp_path_factory.mktemp("run"), engine, seed=1, connect=connect, crowd=DEVICES // 2)
    beside = played(tmp_path_factory.mktemp("run"), engine, seed=1)
    assert [row.sha256 for row in spread.history.adapters] == [row.sha256 for row in beside.history.adapters]


def test_a_process_that_ends_ends_the_run(tmp_path: pathlib.Path, engine: Engine, mosquitto: Mosquitto) -> None:
    """What goes wrong there is not waited for."""
    with pytest.raises(Unfinished):
        played(tmp_path, engine, connect=functools.partial(over_its_own_way, mosquitto.url), crowd=DEVICES)


def over_its_own_way(url: str, client: str, will: Will | None) -> MqttTransport:
    """As `over`, but for one device."""
    if client.endswith("d3"):
        msg = "there is no way"
        raise OSError(msg)
    return over(url, client, will)


def test_deltas_have_their_codec_and_their_residual(tmp_path: pathlib.Path, engine: Engine) -> None:
    """Coarse deltas leave on each device what they left out."""
    training = {"steps": 3, "batch": 4, "learning_rate": 1e-2, "delta_codec": "int8"}
    run = played(tmp_path, engine, aggregation={"rule": "freeze-a"}, training=training)
    assert {row.codec for row in run.history.results} == {DeltaCodec.INT8}
    devices = {row.device for row in run.history.results}
    assert {path.parts[-3] for path in tmp_path.glob("devices/*/outbox/residual")} == devices


def test_it_learns_what_a_worker_learns(tmp_path: pathlib.Path, engine: Engine, tiny_vision: pathlib.Path) -> None:
    """The same order, in a worker's process and here, gives the same delta but for rounding."""
    order = make_order(tmp_path, tiny_vision)
    path = tmp_path / "order"
    path.write_bytes(codec.encode(order))
    environment = training_environment(order.threads)
    subprocess.run([sys.executable, "-m", "edge_sdk.worker", path], check=True, env=environment, capture_output=True)
    theirs = delta_of(order)
    assert isinstance(do(order, lambda order: engine.train(order, lambda _step: None)), Report)
    ours = delta_of(order)
    assert theirs.tensors.keys() == ours.tensors.keys()
    assert (theirs + -1 * ours).norm() <= 1e-4 * theirs.norm()


def delta_of(order: WorkerOrder) -> Delta:
    """What the order's task learned."""
    data = pathlib.Path(order.delta).read_bytes()
    return decode_delta(data, len(data))[1]


def test_a_budget_that_is_too_small_is_declined_by_prediction(
    tmp_path: pathlib.Path, engine: Engine, tiny_vision: pathlib.Path
) -> None:
    """Nothing is enforced in one process, but nothing is planned that would not fit either."""
    order = dataclasses.replace(make_order(tmp_path, tiny_vision), budget_bytes=10**6)
    outcome = do(order, lambda order: engine.train(order, lambda _step: None))
    assert isinstance(outcome, Failure)
    assert outcome.reason.value == "over-budget"


def test_a_defect_in_a_thread_ends_the_run(tmp_path: pathlib.Path, tiny_vision: pathlib.Path) -> None:
    """Rather than leave a round open for ever."""

    class Broken(Engine):
        def train(self, order: WorkerOrder, progress: Callable[[StepReport], None]) -> Report:
            del order, progress
            raise ZeroDivisionError

    engine = Broken(tiny_vision, threads=1)
    with pytest.raises(ZeroDivisionError):
        played(tmp_path, engine)
    engine.close()


def test_rounds_that_come_to_nothing_are_an_error(tmp_path: pathlib.Path, engine: Engine) -> None:
    """Devices with a class that the model lacks fail, each with a reason, and the run says that it gave up."""
    rounds = {"count": 1, "devices": DEVICES, "quorum": DEVICES, "attempts": 1}
    with pytest.raises(Unfinished, match="the run test ended as gave-up"):
        played(tmp_path, engine, classes=4, rounds=rounds)
