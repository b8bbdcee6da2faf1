"""Real artifacts of both kinds of model, opened once."""

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


@pytest.fixture(params=["llama", "classifier"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """Each of them in turn."""
    found: Artifact = request.getfixturevalue(request.param)
    return found
