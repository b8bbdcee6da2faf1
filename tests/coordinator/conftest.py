"""What several of the coordinator's tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coordinator.jobs import Jobs


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    """Jobs that are ended with the test."""
    started = Jobs()
    yield started
    started.close()
