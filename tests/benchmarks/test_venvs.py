"""The peers' environments are whole or absent, and made anew for other pins."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from benchmarks.fetch import FetchError
from benchmarks.venvs import environment

IMPOSSIBLE = "./no-such-package.whl"  # a file, so that no registry is asked


def test_an_environment_is_made_once_and_runs_where_it_was_put(tmp_path: pathlib.Path) -> None:
    """Its Python works after the rename, has its own prefix and none of our packages; a second call makes nothing."""
    python = environment(tmp_path, "bare", ())
    program = "import importlib.util, sys; print(sys.prefix, importlib.util.find_spec('numpy'))"
    said = subprocess.run([python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.split() == [str(python.parent.parent), "None"]
    (python.parent.parent / "mark").touch()
    assert environment(tmp_path, "bare", ()) == python
    assert (python.parent.parent / "mark").exists()


def test_what_failed_is_not_taken_for_an_environment(tmp_path: pathlib.Path) -> None:
    """When pip fails nothing is left, and the next call tries again."""
    for _ in range(2):
        with pytest.raises(FetchError, match="no environment for broken: pip ended with"):
            environment(tmp_path, "broken", (IMPOSSIBLE,))
        assert not list(tmp_path.iterdir())


def test_other_pins_make_another_environment(tmp_path: pathlib.Path) -> None:
    """A whole environment does not serve other requirements: here it would hide that these cannot be met."""
    environment(tmp_path, "peer", ())
    with pytest.raises(FetchError):
        environment(tmp_path, "peer", (IMPOSSIBLE,))
