"""Virtual environments for peers whose packages cannot share ours: made once, in the user's cache folder.

    python -m benchmarks.venvs [ort-training ...]

makes what is missing and prints each one's Python. A folder's name holds a digest of its requirements and of the Python
under it: other pins make another folder, and a half-made one is never found. An environment is renamed into its place
once it is whole, so only its Python can be called (`python -m ...`); the scripts beside it name a folder that is gone.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.fetch import STANDARD_ERROR, FetchError, cache_folder, cached, say

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # Its wheel stops at Python 3.12. onnx 1.17 writes IR version 10 at most, the newest that 1.19.2 reads.
    "ort-training": ("onnxruntime-training-cpu==1.19.2", "onnx==1.17.0"),
    # The torch that exports for it must be ours: a program is not read across torch's versions.
    "executorch": ("executorch==1.5.1", "torch==2.13.0"),
}


def python_of(name: str, cache: pathlib.Path | None = None) -> pathlib.Path:
    """The Python of the environment `name`, a key of REQUIREMENTS, made if it is not there. Raises FetchError."""
    return environment((cache or cache_folder()) / "venvs", name, REQUIREMENTS[name])


def environment(parent: pathlib.Path, name: str, requirements: Sequence[str]) -> pathlib.Path:
    """The Python of an environment with `requirements` (as pip reads them), made under `parent` if it is not there.

    Raises FetchError when pip or venv fails; nothing is left then.
    """
    folder = parent / f"{name}-{_digest(requirements)}"

    def build(temporary: pathlib.Path) -> None:
        say(f"making an environment for {name}: {', '.join(requirements) or 'no packages'}")
        # Without pip of its own: ours installs into it.
        _run([sys.executable, "-m", "venv", "--without-pip", str(temporary)], name)
        if requirements:
            pip = [sys.executable, "-m", "pip", "--python", str(temporary / "bin" / "python"), "install"]
            _run([*pip, "--disable-pip-version-check", *requirements], name)

    return cached(folder, build) / "bin" / "python"


def _digest(requirements: Sequence[str]) -> str:
    """Of what the environment is made from: the requirements, and the Python that it points to."""
    made_from = [sys.implementation.cache_tag, sys.base_prefix, *requirements]
    return hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:12]


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, check=False, stdout=STANDARD_ERROR)
    if done.returncode != 0:
        msg = f"no environment for {name}: {command[2]} ended with {done.returncode} (its own words above)"
        raise FetchError(msg)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the named environments, all by default, and print their Pythons; 1 when one cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.venvs", description="Make the peers' environments.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(REQUIREMENTS)}; all by default")
    asked = parser.parse_args(arguments).names or list(REQUIREMENTS)
    if unknown := sorted(set(asked) - set(REQUIREMENTS)):
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(REQUIREMENTS)}")
    try:
        for name in asked:
            print(python_of(name))
    except (FetchError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
