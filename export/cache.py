"""What is made once and kept in the user's cache folder: folders that are whole or absent, environments among them.

An environment serves what cannot be installed beside us. It is renamed into its place once it is whole, so only its
Python can be called (`python -m ...`); the scripts beside it name a folder that is gone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from edge_sdk.wire.errors import last_line
from export.errors import ExportError

Build = Callable[[pathlib.Path], None]


def cache_folder() -> pathlib.Path:
    """The user's cache: `$XDG_CACHE_HOME/fedpeat`, else `~/.cache/fedpeat`.

    A relative XDG_CACHE_HOME is ignored, as its specification asks (https://specifications.freedesktop.org/basedir).
    """
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else pathlib.Path.home() / ".cache") / "fedpeat"


def cached(folder: pathlib.Path, build: Build) -> pathlib.Path:
    """`folder`, made by `build(temporary folder)` if it is not there yet: whole or not at all, and made once.

    When two processes build it at the same time, the first to finish wins and the other's work is dropped.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        built = pathlib.Path(temporary) / folder.name
        built.mkdir()
        build(built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def environment_folder(parent: pathlib.Path, name: str, requirements: Sequence[str]) -> pathlib.Path:
    """Where an environment is, or would be: its name holds a digest of the requirements and of the Python under it."""
    made_from = "\n".join([sys.implementation.cache_tag, sys.base_prefix, *requirements])
    return parent / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def environment(
    parent: pathlib.Path, name: str, requirements: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> pathlib.Path:
    """The Python of an environment with `requirements` (as pip reads them), made under `parent` if it is not there.

    `say` is told in one line when it has to be made. Raises ExportError when that fails; nothing is left then.
    """

    def build(temporary: pathlib.Path) -> None:
        say(f"making an environment for {name}: {', '.join(requirements) or 'no packages'}")
        # Without pip of its own: ours installs into it.
        _run("venv", ["--without-pip", str(temporary)], name)
        if requirements:
            target = ["--python", str(temporary / "bin" / "python")]
            _run("pip", [*target, "install", "--disable-pip-version-check", "--no-input", *requirements], name)

    return cached(environment_folder(parent, name, requirements), build) / "bin" / "python"


def _run(module: str, arguments: Sequence[str], name: str) -> None:
    python = sys.executable
    if importlib.util.find_spec(module) is None:
        msg = f"no environment for {name}: {python} has no {module}; try {python} -m ensurepip"
        raise ExportError(msg)
    done = subprocess.run([python, "-m", module, *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        why = last_line(done.stderr, f"exit status {done.returncode}")
        hint = " (is a package index within reach?)" if module == "pip" else ""
        msg = f"no environment for {name}: {module} says: {why}{hint}"
        raise ExportError(msg)
