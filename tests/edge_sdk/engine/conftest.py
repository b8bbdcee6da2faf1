"""Real artifacts of both kinds of model, opened once."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from edge_sdk.engine.artifact import Artifact, open_artifact

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="session")
def llama(tiny_artifact: pathlib.Path) -> Artifact:
    """A language model in float32, all of whose blocks train."""
    return open_artifact(tiny_artifact)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A BERT classifier in int8, whose last block and head train.

    A bare install cannot export: there FEDPEAT_TINY_CLASSIFIER names a folder that was made before.
    """
    if made := os.environ.get("FEDPEAT_TINY_CLASSIFIER"):
        return open_artifact(made)
    folder = tmp_path_factory.mktemp("classifier")
    model, artifact = str(folder / "model"), str(folder / "artifact")
    subprocess.run([sys.executable, "-m", "tests.models", "bert", model], check=True, cwd=ROOT)
    command = [sys.executable, "-m", "export.cli", "export", model, "--task", "sequence-classification"]
    shape = ["--bits", "8", "--train-last", "1", "--rank", "2", "--tokens", "16", "--labels", "bad,so-so,good"]
    subprocess.run([*command, *shape, "--no-parity", "--out", artifact], check=True, cwd=ROOT)
    return open_artifact(artifact)


@pytest.fixture(params=["llama", "classifier"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """Each of them in turn."""
    found: Artifact = request.getfixturevalue(request.param)
    return found
