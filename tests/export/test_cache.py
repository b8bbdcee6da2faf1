"""Folders in the cache, and environments among them, are whole or absent, and made anew for other pins."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from export.cache import cache_folder, cached, environment
from export.errors import ExportError

ROOT = pathlib.Path(__file__).parents[2]
IMPOSSIBLE = "./no-such-package.whl"  # a file, so that no registry is asked


def test_cached_builds_once(tmp_path: pathlib.Path) -> None:
    """What is in the cache is not built again."""
    builds = []

    def build(folder: pathlib.Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("whole")

    for _ in range(2):
        assert (cached(tmp_path / "cache" / "asset", build) / "file").read_text() == "whole"
    assert len(builds) == 1


def test_cached_leaves_nothing_of_a_failed_build(tmp_path: pathlib.Path) -> None:
    """A build that is interrupted leaves no folder behind, half-made or temporary."""

    def build(folder: pathlib.Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "asset", build)
    assert list(tmp_path.iterdir()) == []


def test_cached_gives_way_to_a_faster_process(tmp_path: pathlib.Path) -> None:
    """Where another process finished the same folder first, its work stands."""

    def build(folder: pathlib.Path) -> None:
        (folder / "file").write_text("slow")
        (tmp_path / "asset").mkdir()
        (tmp_path / "asset" / "file").write_text("fast")

    assert (cached(tmp_path / "asset", build) / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["asset"]


@pytest.mark.parametrize(("base", "expected"), [("/x/cache", "/x/cache/fedpeat"), ("relative", None), ("", None)])
def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, base: str, expected: str | None) -> None:
    """An absolute XDG_CACHE_HOME is used; a relative or empty one counts as unset."""
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == pathlib.Path(expected or "/home/somebody/.cache/fedpeat")


def test_an_environment_is_made_once_and_runs_where_it_was_put(tmp_path: pathlib.Path) -> None:
    """Its Python works after the rename, has its own prefix and none of our packages; a second call makes nothing."""
    said: list[str] = []
    python = environment(tmp_path, "bare", (), said.append)
    program = "import importlib.util, sys; print(sys.prefix, importlib.util.find_spec('numpy'))"
    printed = subprocess.run([python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.split() == [str(python.parent.parent), "None"]
    (python.parent.parent / "mark").touch()
    assert environment(tmp_path, "bare", (), said.append) == python
    assert (python.parent.parent / "mark").exists()
    assert said == ["making an environment for bare: no packages"]


def test_what_failed_is_not_taken_for_an_environment(tmp_path: pathlib.Path) -> None:
    """When pip fails its last line is said, nothing is left, and the next call tries again."""
    for _ in range(2):
        with pytest.raises(ExportError, match=r"no environment for broken: pip says: ERROR: .*no-such-package"):
            environment(tmp_path, "broken", (IMPOSSIBLE,))
        assert not list(tmp_path.iterdir())


def test_an_index_out_of_reach_is_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, what could not be had is named, in one line."""
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/", "RETRIES": "0", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ExportError, match=r"fedpeat-no-such-package==1 \(is a package index within reach") as caught:
        environment(tmp_path, "peer", ("fedpeat-no-such-package==1",))
    assert len(str(caught.value).splitlines()) == 1


def test_without_pip_it_says_so(tmp_path: pathlib.Path) -> None:
    """A Python that has no pip cannot make one with packages; the line says what to try."""
    python = environment(tmp_path, "bare", ())
    program = (
        "import pathlib, sys; from export.cache import environment; environment(pathlib.Path(sys.argv[1]), 'peer', 'x')"
    )
    done = subprocess.run([python, "-c", program, tmp_path], check=False, capture_output=True, text=True, cwd=ROOT)
    assert f"no environment for peer: {python} has no pip; try {python} -m ensurepip" in done.stderr
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["bare"]


def test_other_pins_make_another_environment(tmp_path: pathlib.Path) -> None:
    """A whole environment does not serve other requirements: here it would hide that these cannot be met."""
    environment(tmp_path, "peer", ())
    with pytest.raises(ExportError):
        environment(tmp_path, "peer", (IMPOSSIBLE,))
