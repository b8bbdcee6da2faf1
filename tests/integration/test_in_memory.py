"""The same fleet over the in-memory broker: the real daemon, agents and workers, and a network that misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pytest

from benchmarks.demo import write_toml
from coordinator import daemon
from coordinator.builder import build, load_artifact
from coordinator.config import Rule, load_config
from coordinator.controller.replay import replay
from coordinator.daemon import Daemon
from coordinator.history import History, read_history
from coordinator.jobs import Jobs
from coordinator.ledger import Ledger
from coordinator.places import received_folder, trust_folder
from coordinator.policy.fitting import Known
from coordinator.policy.types import Choice, Decision, Observation
from coordinator.registry import Registry
from coordinator.report import EMULATOR, FULL
from coordinator.round_states import State
from coordinator.screen import Screen
from edge_sdk import power
from edge_sdk.agent import Agent
from edge_sdk.config import load_config as load_device
from edge_sdk.engine.artifact import artifact_in
from edge_sdk.environment import training_environment
from edge_sdk.events import StartWorker
from edge_sdk.feedback import Residual, owner, read_residual
from edge_sdk.identity import Identity
from edge_sdk.order import WorkerOrder
from edge_sdk.outbox import RESIDUAL, SUFFIX, Outbox
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.delta import Delta, decode_delta, unpack_array
from edge_sdk.wire.messages import DeltaCodec, Message, Receipt, decode_message
from edge_sdk.wire.records import read_record
from edge_sdk.wire.signed import is_envelope, read_envelope
from edge_sdk.wire.tensors import read_tensors
from edge_sdk.wire.transport import Event, MemoryBroker, Received, Transport, Will
from tests.edge_sdk.test_power import cores
from tests.integration.conftest import (
    PATIENCE_S,
    ROUNDS,
    TOKENS,
    Tiny,
    assert_counted_once,
    built,
    coordinator_table,
    device_table,
    image_data,
    wait_until,
    word_data,
)
from tests.models import tiny_model

COARSE: dict[str, Any] = {
    "aggregation": {"rule": "freeze-a"},
    "training": {"steps": 3, "batch": 2, "tokens": TOKENS, "learning_rate": 1e-2, "delta_codec": "int8"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Broker(Protocol):
    """Whatever connects clients."""

    def connect(self, client_id: str, will: Will | None = None) -> Transport:
        """A client."""


BrokerT = TypeVar("BrokerT", bound=Broker)


@dataclass(slots=True)
class Fleet(Generic[BrokerT]):
    """A coordinator and devices around one broker, each in a thread of this process."""

    folder: pathlib.Path
    tiny: Tiny
    broker: BrokerT
    words: dict[str, list[str]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def device(self, name: str, budget: str = "300MB", **changes: Any) -> Iterator[None]:
        """A device, while the block lasts."""
        path = self.folder / f"{name}.toml"
        write_toml(path, device_table(name, self.folder, "mqtt://127.0.0.1", budget, **changes))
        config = load_device(path)
        words = self.words[name] = []
        identity = Identity.of(config)
        transport = self.broker.connect(f"test-{name}", Agent.will(config, identity))
        agent = Agent(config, identity, transport, words.append)

        def live() -> None:
            while not self._over.is_set():
                agent.turn()
            agent.close()
            transport.close()

        thread = threading.Thread(target=live, name=name)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def serve(self, *, restored: bool = False, **changes: Any) -> State:
        """The coordinator, to its end; `changes` go to its configuration."""
        out = self.folder / "out"
        if not out.exists():
            shutil.copytree(self.tiny.artifact, out / "artifact")
        path = self.folder / "coordinator.toml"
        write_toml(path, coordinator_table(self.tiny.model, out, **self.tiny.changes, **changes))
        config = load_config(path)
        transport, jobs = self.broker.connect("test-coordinator"), Jobs()
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            with (
                Ledger(out / "ledger.sqlite", config.name, config.digest()) as ledger,
                Registry(trust_folder(config)) as registry,
            ):
                served = Daemon(
                    config, load_artifact(config), ledger, registry, transport, jobs, Screen(), restored=restored
                )
                return served.run(lambda: time.monotonic() > deadline_s, lambda: None)
        finally:
            jobs.close()
            transport.close()

    def history(self) -> History:
        """The ledger, read."""
        return read_history(self.folder / "out" / "ledger.sqlite")


class Killed(Exception):  # noqa: N818 - no error: somebody pulled the plug
    """The device is no more."""


class EndsAtReceipt:
    """A transport whose device is killed when its first receipt arrives."""

    def __init__(self, inner: Transport) -> None:
        """Everything else goes to `inner`."""
        self._inner = inner
        self.publish, self.subscribe, self.wake, self.close = inner.publish, inner.subscribe, inner.wake, inner.close
        self.unsubscribe, self.backlog = inner.unsubscribe, inner.backlog

    def receive(self, timeout_s: float) -> Event | None:
        """See Transport. Raises Killed."""
        event = self._inner.receive(timeout_s)
        if isinstance(event, Received) and "/down/" in event.topic and is_envelope(event.payload):
            self._heard(decode_message(read_envelope(event.payload).body))
        return event

    def _heard(self, message: Message) -> None:
        if isinstance(message, Receipt):
            raise Killed


class Recorded(Agent):
    """An agent whose orders can be read."""

    orders: ClassVar[list[WorkerOrder]] = []

    def _order(self, start: StartWorker) -> WorkerOrder:
        self.orders.append(super()._order(start))
        return self.orders[-1]


def learned(order: WorkerOrder, path: pathlib.Path) -> Delta:
    """What the order's task learns, exactly: the same task again, in fp32."""
    task = dataclasses.replace(order.task, delta_codec=DeltaCodec.FP32)
    written = path.with_suffix(".order")
    written.write_bytes(codec.encode(dataclasses.replace(order, task=task, feedback=None, delta=str(path))))
    subprocess.run(
        [sys.executable, "-m", "edge_sdk.worker", written],
        env=training_environment(order.threads),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return decode_delta(path.read_bytes(), path.stat().st_size)[1]


def test_a_run_over_a_perfect_network(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Two devices, three rounds; each delta is in the ledger once, and the adapter changes every round."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert len(history.results) == 2 * ROUNDS
    assert len({adapter.sha256 for adapter in history.adapters}) == ROUNDS + 1


def test_a_run_at_a_lower_rank(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Devices at a level of rank 1 get and return factors of rank 1; the adapter of rank 2 holds what they learn."""
    levels = [{"name": "narrow", "rank": 1}, {"name": "fp32"}]  # the first one fits everybody
    write_toml(tmp_path / "build.toml", coordinator_table(tiny.model, tmp_path / "out", levels=levels))
    config, jobs = load_config(tmp_path / "build.toml"), Jobs()
    artifact = build(config, jobs, lambda _line: None)
    jobs.close()
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(levels=levels) is State.DONE
    history, received = fleet.history(), BlobStore(received_folder(config))
    assert_counted_once(history)
    for row in history.results:
        file, delta = decode_delta(received.read(Blob(row.sha256, row.size_bytes)), row.size_bytes)
        given = read_tensors(artifact.store.path(file.adapter))
        assert all(array.shape == given[name].shape for name, array in delta.tensors.items())
        assert {len(array) for name, array in given.items() if name.endswith("lora_A")} == {1}
    adapters = [read_tensors(artifact.store.path(adapter.sha256)) for adapter in history.adapters]
    factors = [name for name in adapters[-1] if name.endswith("lora_A")]
    assert all(len(adapter[name]) == 2 for adapter in adapters for name in factors)
    assert history.adapters[1].truncation < 1e-5, "two changes of rank 1 fit"
    assert all(adapters[-1][name.replace("lora_A", "lora_B")].any() for name in factors)


def test_a_fleet_learns_from_images(tmp_path: pathlib.Path, tiny_images: Tiny) -> None:
    """By configuration alone: two devices with images of their own, on which each learns; accuracy is measured."""
    fleet = Fleet(tmp_path, tiny_images, MemoryBroker())
    one, other = (image_data(tmp_path / name) for name in "ab")
    with fleet.device("a", data=one), fleet.device("b", data=other):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert len(history.results) == 2 * ROUNDS
    assert history.results[-1].report.loss_after < history.results[0].report.loss_before
    kinds = {kind: history.evaluated(ROUNDS)[kind] for kind in (FULL, EMULATOR)}
    assert all(row.accuracy is not None and row.rows == 8 for row in kinds.values())


def test_a_fleet_learns_labels_of_words(tmp_path: pathlib.Path) -> None:
    """By configuration alone: a device that has labelled words learns from them; accuracy over tokens is measured."""
    model = {"dir": str(tiny_model("bert", tmp_path / "model")), "task": "token-classification"}
    changes = {
        "model": {**model, "labels": ["short", "long"]},
        "adapter": {"rank": 2, "alpha": 4},
        "levels": [{"name": "int8", "bits": 8}],
        "rounds": {"count": 1, "devices": 1, "deadline_s": 60.0},
        "training": {"steps": 12, "batch": 4, "tokens": TOKENS, "learning_rate": 3e-2},
        "evaluation": {**word_data(tmp_path / "held-out.jsonl"), "rows": 8},
    }
    fleet = Fleet(tmp_path, built(tmp_path, tmp_path / "model", **changes), MemoryBroker())
    with fleet.device("a", data=word_data(tmp_path / "words.jsonl")):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    (row,) = history.results
    assert row.report.loss_after < row.report.loss_before
    before, after = (history.evaluated(version) for version in (0, 1))
    for kind in (FULL, EMULATOR):
        assert after[kind].loss < before[kind].loss
        assert (after[kind].accuracy or 0) > 0.6
    assert after[FULL].loss == pytest.approx(after[EMULATOR].loss, rel=2e-2)


def test_a_run_over_a_network_that_loses_repeats_and_swaps(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """With messages lost, doubled and late the run still completes, and nothing counts twice."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker(seed=1, loss=0.03, duplicate=0.1, reorder=0.1))
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve() is State.DONE
    assert_counted_once(fleet.history())


def test_a_run_in_which_everybody_loses_the_broker(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """The broker forgets everything in the middle of the run: both ends say it again."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())

    def crash() -> None:
        wait_until(lambda: any("training" in line for line in fleet.words["a"]), "a device trains")
        fleet.broker.crash()
        time.sleep(0.5)
        fleet.broker.restart()

    with fleet.device("a"), fleet.device("b"):
        saboteur = threading.Thread(target=crash)
        saboteur.start()
        assert fleet.serve() is State.DONE
        saboteur.join()
    assert_counted_once(fleet.history())


def test_a_run_with_coarse_deltas(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """With int8 deltas, residuals and receipts that come twice all rounds complete, nothing counts twice, and what was
    left out is on the devices' disks.
    """
    fleet = Fleet(tmp_path, tiny, MemoryBroker(seed=2, duplicate=0.1))
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(**COARSE) is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert {row.codec for row in history.results} == {DeltaCodec.INT8}
    for name in {row.device for row in history.results}:
        assert Outbox(fleet.folder / f"{name}-store" / "outbox").residual.exists()


class ByRound:
    """A policy that chooses by round and device; a device without a choice gets what is configured."""

    choices: ClassVar[dict[tuple[int, str], Choice]] = {
        (1, "a"): Choice("int8", DeltaCodec.INT8, share=3.0, power=0.5),
        (1, "b"): Choice("fp32", DeltaCodec.FP16),
        (2, "a"): Choice("fp32", DeltaCodec.INT4, power=0.5),
        (2, "b"): Choice("int8", DeltaCodec.INT8, power=0.5),
    }

    def initial(self) -> Known:
        """Nothing is learned."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The same for the same round, whatever was answered."""
        names, round_ = [device.name for device in observation.devices], observation.terms.round
        return Decision({name: self.choices.get((round_, name), Choice("fp32")) for name in names}), state


def test_all_of_a_decision_takes_effect(tmp_path: pathlib.Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels, codecs and threads or clock are as chosen, what coarse codecs left out is paid by an exact one, a quarter
    of the bandwidth is said and set, and the ledger alone is enough to decide it all again.
    """
    monkeypatch.setattr(daemon, "policy_or_greedy", lambda _config, _say: ByRound())
    monkeypatch.setattr(power, "CPUFREQ", cores(tmp_path / "cpufreq", 2_000_000))
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a", threads=2), fleet.device("b", clock=True):
        changes: dict[str, Any] = {"aggregation": {"rule": "freeze-a"}, "transfer": {"megabytes_s": 200.0}}
        assert fleet.serve(**changes) is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    found = {(row.round, row.device): (row.level, row.codec, row.report.threads) for row in history.results}
    assert found == {
        (1, "a"): ("int8", DeltaCodec.INT8, 1),
        (1, "b"): ("fp32", DeltaCodec.FP16, 1),
        (2, "a"): ("fp32", DeltaCodec.INT4, 1),
        (2, "b"): ("int8", DeltaCodec.INT8, 1),
        (3, "a"): ("fp32", DeltaCodec.FP32, 2),
        (3, "b"): ("fp32", DeltaCodec.FP32, 1),
    }
    assert [row.report.clock for row in history.results] == [1, 1, 1, 0.5, 1, 1]
    assert ["75 % of the bandwidth, 1 of 2 threads" in task.words for task in history.tasks[:2]] == [True, False]
    for name in "ab":
        left = read_record(Residual, Outbox(fleet.folder / f"{name}-store" / "outbox").residual, 1 << 24)
        assert left.tensors
        assert not any(unpack_array(tensor).any() for tensor in left.tensors.values())
    replayed = list(replay(fleet.folder / "out" / "ledger.sqlite", ByRound()))
    assert [one.logged.round for one in replayed] == [1, 2, 3]
    assert all(one.agrees for one in replayed)
    views = {view.name: view for view in replayed[-1].logged.observation.fleet}
    assert all(view.rate_bytes_s > 0 and view.slowness > 0 and view.answered == 2 for view in views.values())
    assert views["a"].holds == {"fp32", "int8"}


def test_a_device_is_killed_between_result_and_receipt(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Its residual is applied once: what came of round 2 and what is left then is what round 2 learned and what was
    left before.
    """
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    path = tmp_path / "device.toml"
    write_toml(path, device_table("a", tmp_path, "mqtt://127.0.0.1"))
    config, over, left = load_device(path), threading.Event(), tmp_path / "left"
    outbox = Outbox(config.store / "outbox")

    def lives() -> None:
        identity = Identity.of(config)
        will = Agent.will(config, identity)
        first = Recorded(config, identity, EndsAtReceipt(fleet.broker.connect("a", will)), lambda _line: None)
        with contextlib.suppress(Killed):
            while not over.is_set():
                first.turn()
        fleet.broker.drop("a")
        (pending,) = outbox.folder.glob(f"*{RESIDUAL}")
        shutil.copy(pending, left)
        assert not outbox.residual.exists()
        second = Recorded(config, identity, fleet.broker.connect("a", will), lambda _line: None)
        while not over.is_set():
            second.turn()
        second.close()

    device = threading.Thread(target=lives)
    device.start()
    try:
        rounds = {"count": 2, "devices": 1, "deadline_s": 60.0, "wait_s": 30.0}
        assert fleet.serve(**COARSE, rounds=rounds) is State.DONE
        wait_until(lambda: not list(outbox.folder.glob(f"*{SUFFIX}")), "the last receipt came")
    finally:
        over.set()
        device.join()
    history = fleet.history()
    assert_counted_once(history, rounds=2)
    order = Recorded.orders[-1]
    assert order.feedback is not None
    received = BlobStore(received_folder(load_config(tmp_path / "coordinator.toml")))
    last = history.results[-1]
    came = decode_delta(received.read(Blob(last.sha256, last.size_bytes)), last.size_bytes)[1]
    manifest = artifact_in(BlobStore(config.store), order.task.artifact).manifest
    before, after = (Delta(read_residual(path, owner(order.task, manifest))) for path in (left, outbox.residual))
    true = learned(order, tmp_path / "true")
    assert 0 < before.norm() < 0.1 * true.norm()
    missing = true + before + -1 * (came + after)
    assert missing.norm() <= 0.05 * before.norm()


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("gpt2", {"kind": "layers", "first": 1, "last": 1}),
        ("deit", {"kind": "prompt", "length": 3}),
        ("llama", {"kind": "prompt", "length": 3}),
        ("gpt2", {"kind": "prefix", "length": 3}),
    ],
    ids=["layers", "prompt", "prompt of a text", "prefix"],
)
def test_another_kind_of_adapter_is_a_line_in_the_configuration(
    tmp_path: pathlib.Path, model: str, adapter: dict[str, Any]
) -> None:
    """The same fleet trains whole blocks, prompts, prefixes; after a round every tensor is another one."""
    folder = tiny_model(model, tmp_path / "model")
    changes: dict[str, Any] = {
        "adapter": adapter,
        "levels": [{"name": "fp32", "bits": 32}, {"name": "int8-last1", "bits": 8, "train_last": 1}],
        "rounds": {"count": 1, "devices": 2, "quorum": 2},
    }
    data: dict[str, Any] = {}
    if model == "deit":
        changes["model"] = {"dir": str(folder), "task": "image-classification", "labels": ["dark", "grey", "bright"]}
        data["data"] = image_data(tmp_path / "images")
    fleet = Fleet(tmp_path, built(tmp_path, folder, **changes), MemoryBroker())
    with fleet.device("a", **data), fleet.device("b", **data):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert load_config(tmp_path / "coordinator.toml").aggregation.rule is Rule.MEAN
    assert len(history.results) == 2
    store = BlobStore(tmp_path / "out" / "artifact")
    before, after = (read_tensors(store.path(one.sha256)) for one in history.adapters)
    assert before.keys() == after.keys()
    assert not {name for name in before if np.array_equal(before[name], after[name])}


PLAIN: dict[str, Any] = {"adapter": {"kind": "full"}, "levels": [{"name": "model"}]}
CASES: dict[str, dict[str, Any]] = {  # of FedPEAT, by what trains of which model
    "emulator, adapter": {"levels": [{"name": "int8", "bits": 8}]},
    "model, adapter": {"levels": [{"name": "fp32"}]},
    "model, all of it": PLAIN,
}


@pytest.mark.parametrize("case", CASES)
def test_fedpeats_three_cases_are_one_configuration(tmp_path: pathlib.Path, tiny: Tiny, case: str) -> None:
    """An emulator with an adapter, the model with one, all of the model: one device's result is the next version."""
    changes = CASES[case]
    if changes is PLAIN:
        tiny = built(tmp_path, tiny_model("gpt2", tmp_path / "model"), **changes)
        changes = {}
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"):
        assert fleet.serve(**changes, rounds={"count": 1, "devices": 1, "deadline_s": 60.0}) is State.DONE
    history, config = fleet.history(), load_config(tmp_path / "coordinator.toml")
    store, received = BlobStore(tmp_path / "out" / "artifact"), BlobStore(received_folder(config))
    before, after = (read_tensors(store.path(one.sha256)) for one in history.adapters)
    (row,) = history.results
    delta = decode_delta(received.read(Blob(row.sha256, row.size_bytes)), row.size_bytes)[1].tensors
    assert row.level == config.levels[0].name
    assert delta.keys() == before.keys()
    if config.aggregation.rule is Rule.MEAN:
        assert all(name in before for name in ("block.0/attn.c_attn.weight", "norm/weight"))
        for name, array in after.items():
            np.testing.assert_allclose(array, before[name] + delta[name], atol=1e-6)
    else:
        for name in (name for name in before if name.endswith("lora_A")):
            other = name.replace("lora_A", "lora_B")
            product = (before[other] + delta[other]) @ (before[name] + delta[name])
            np.testing.assert_allclose(after[other] @ after[name], product, atol=1e-6)
