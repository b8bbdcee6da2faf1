"""What the device's tests share."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from edge_sdk.data import write_token_folder


@pytest.fixture
def tokens(tmp_path: pathlib.Path) -> pathlib.Path:
    """A token folder with a pattern that can be learned: 8 rows of 16 tokens that count up, from 100 on."""
    ids = 100 + (np.arange(8)[:, None] + np.arange(16)) % 7
    write_token_folder(tmp_path / "tokens", ids, np.full(8, 16))
    return tmp_path / "tokens"
