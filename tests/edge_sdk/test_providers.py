"""An execution provider is one that the installed onnxruntime has, or a line says that it is not."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from edge_sdk.config import load_config
from edge_sdk.doctor import State, check_providers
from edge_sdk.engine import runtime
from edge_sdk.errors import ConfigError
from edge_sdk.order import MAX_ORDER_BYTES, WorkerOrder
from edge_sdk.providers import Provider, installed, require
from edge_sdk.wire import codec
from edge_sdk.wire.messages import FailureReason
from edge_sdk.worker import Failure, do
from tests.edge_sdk.orders import make_order

LINE = "has no provider cuda, only cpu; on a Jetson install NVIDIA's onnxruntime-gpu"
CONFIG = """
device = "pi-1"
fleet = "garden"
broker = "mqtt://localhost"
budget = "256MB"
store = "store"
provider = "{provider}"
[data]
kind = "text-folder"
path = "texts"
"""

pytestmark = pytest.mark.skipif(Provider.CUDA in runtime.available(), reason="this onnxruntime has CUDA")


def test_the_cpu_is_always_there() -> None:
    """It is accepted, and what a fresh process finds."""
    runtime.use(Provider.CPU)
    require(Provider.CPU)
    assert installed() == ["cpu"]


def test_cuda_is_refused_where_it_is_not() -> None:
    """In this process and in the one that is asked for an agent, with the same line; the CPU stays chosen."""
    with pytest.raises(ConfigError, match=LINE):
        runtime.use(Provider.CUDA)
    with pytest.raises(ConfigError, match=LINE):
        require(Provider.CUDA)
    assert runtime._used == [Provider.CPU]


def test_the_doctor_lists_them() -> None:
    """As the configuration names them."""
    finding = check_providers()
    assert (finding.state, finding.text.partition(":")[0]) == (State.OK, "cpu")


@pytest.mark.parametrize("command", ["train", "evaluate", "probe"])
def test_a_command_refuses_cuda(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path, command: str) -> None:
    """One line, status 2."""
    more = {
        "train": ["--data", tmp_path, "--budget", "1GB", "--steps", "1", "--out", tmp_path / "out"],
        "evaluate": ["--data", tmp_path],
        "probe": [],
    }[command]
    words = [sys.executable, "-m", "edge_sdk.cli", command, str(tiny_artifact), "--provider", "cuda", *map(str, more)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert LINE in done.stderr


def test_a_device_that_wants_cuda_does_not_join_without_it(tmp_path: pathlib.Path) -> None:
    """`fedpeat-edge run` ends with 2 before it connects."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("words")
    path = tmp_path / "device.toml"
    path.write_text(CONFIG.format(provider="cuda"))
    assert load_config(path).provider is Provider.CUDA
    words = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), LINE in done.stderr) == (2, 1, True)
    path.write_text(CONFIG.format(provider="abacus"))
    with pytest.raises(ConfigError, match="provider"):
        load_config(path)


def test_a_worker_answers_with_the_line(tmp_path: pathlib.Path, tiny_artifact: pathlib.Path) -> None:
    """The order carries the provider; one that is not there makes a failure, not a crash."""
    order = dataclasses.replace(make_order(tmp_path, tiny_artifact), provider=Provider.CUDA)
    read = codec.decode(WorkerOrder, codec.encode(order), MAX_ORDER_BYTES)
    assert read == order
    failure = do(read)
    assert isinstance(failure, Failure)
    assert failure.reason is FailureReason.WORKER_DIED
    assert LINE in failure.detail
