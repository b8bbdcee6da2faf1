"""What every test shares. Imports nothing that a bare install lacks: the same file serves the device's own tests."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from tests.brokers import Mosquitto

HERE = pathlib.Path(__file__).parent
BROKERS = {"mosquitto", "first_choice", "shared", "house", "fleet"}  # the fixtures of tests that start a broker

# Set before any library reads them. Nothing is fetched from a model hub, no plot opens a window, and torch's threads
# do not spin while they wait, which beside another busy process is 20 times slower.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg", OMP_WAIT_POLICY="PASSIVE")

# A shell ignores SIGINT for what it begins in the background, and what is ignored is inherited: no process that a test
# starts could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example's time says how busy the machine is: the whole test's timeout is enough.
hypothesis.settings.register_profile("fedpeat", deadline=None)
hypothesis.settings.load_profile("fedpeat")


def pytest_report_header() -> str:
    """Say what is under test: a failure that depends on a version should show it."""
    names = ("numpy", "onnxruntime", "paho-mqtt", "msgpack", "cryptography", "torch", "transformers", "peft", "onnx")
    return "versions: " + ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks for groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, so that nobody forgets to.

    `edge_only`: all of tests/edge_sdk must pass where nothing but the bare install is. `broker`: asks for a
    fixture of BROKERS.
    """
    for item in items:
        if (HERE / "edge_sdk") in item.path.parents:
            item.add_marker(pytest.mark.edge_only)
        if BROKERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
        grouped = item.get_closest_marker("xdist_group")  # by the conftest of its folder, which comes first
        if (
            item.config.pluginmanager.hasplugin("xdist") and not grouped
        ):  # one process for what shares a file's fixtures
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(HERE))))


@pytest.fixture
def mosquitto(tmp_path: pathlib.Path) -> Iterator[Mosquitto]:
    """A real broker, running; skipped where there is no mosquitto."""
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An artifact folder of a tiny random Llama, made by the real export in a process of its own.

    A bare install cannot export: there FEDPEAT_TINY_ARTIFACT names a folder that was made before.
    """
    if made := os.environ.get("FEDPEAT_TINY_ARTIFACT"):
        return pathlib.Path(made)
    return _exported("llama", tmp_path_factory.mktemp("llama"), "--task", "causal-lm")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An artifact folder of a tiny random BERT in int8, whose last block and head train.

    A bare install cannot export: there FEDPEAT_TINY_CLASSIFIER names a folder that was made before.
    """
    if made := os.environ.get("FEDPEAT_TINY_CLASSIFIER"):
        return pathlib.Path(made)
    task = ("--task", "sequence-classification", "--labels", "bad,so-so,good")
    level = ("--bits", "8", "--train-last", "1", "--tokens", "16")
    return _exported("bert", tmp_path_factory.mktemp("bert"), *task, *level, "--no-parity")


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An artifact folder of a tiny random ViT, all of whose blocks and head train, on images of 3 x 12 x 20 bytes.

    A bare install cannot export: there FEDPEAT_TINY_VISION names a folder that was made before.
    """
    if made := os.environ.get("FEDPEAT_TINY_VISION"):
        return pathlib.Path(made)
    task = ("--task", "image-classification", "--labels", "bad,so-so,good")
    return _exported("vit", tmp_path_factory.mktemp("vit"), *task, "--no-parity")


def _exported(kind: str, folder: pathlib.Path, *arguments: str) -> pathlib.Path:
    model, artifact = str(folder / "model"), folder / "artifact"
    subprocess.run([sys.executable, "-m", "tests.models", kind, model], check=True, cwd=HERE.parent)
    export = [sys.executable, "-m", "export.cli", "export", model, "--out", str(artifact), "--adapter", "lora"]
    subprocess.run([*export, "--rank", "2", *arguments], check=True, cwd=HERE.parent)
    return artifact
