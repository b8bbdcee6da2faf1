"""Real artifacts of each kind of model, opened once."""

from __future__ import annotations

import pathlib

import pytest

from edge_sdk.engine.artifact import Artifact, open_artifact


@pytest.fixture(scope="session")
def llama(tiny_artifact: pathlib.Path) -> Artifact:
    """A language model in float32, all of whose blocks train."""
    return open_artifact(tiny_artifact)


@pytest.fixture(scope="session")
def classifier(tiny_classifier: pathlib.Path) -> Artifact:
    """A classifier in int8, whose last block and head train."""
    return open_artifact(tiny_classifier)


@pytest.fixture(scope="session")
def vision(tiny_vision: pathlib.Path) -> Artifact:
    """A classifier of images in float32, all of whose blocks and head train."""
    return open_artifact(tiny_vision)


@pytest.fixture(params=["llama", "classifier"])
def of_text(request: pytest.FixtureRequest) -> Artifact:
    """Each of those that read text in turn."""
    found: Artifact = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["llama", "classifier", "vision"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """Each of them in turn."""
    found: Artifact = request.getfixturevalue(request.param)
    return found
