"""Virtual environments for peers whose packages cannot share ours: made once, in the user's cache folder.

    python -m benchmarks.venvs [ort-training ...]

makes what is missing and prints each one's Python. See `export.cache`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks.fetch import FetchError, say
from export import cache
from export.errors import ExportError
from export.ort_training.environment import NAME, REQUIREMENTS

PEERS: dict[str, tuple[str, ...]] = {
    NAME: REQUIREMENTS,
    # The torch that exports for it must be ours: a program is not read across torch's versions.
    "executorch": ("executorch==1.5.1", "torch==2.13.0"),
}


def python_of(name: str) -> pathlib.Path:
    """The Python of the environment `name`, a key of PEERS, made if it is not there. Raises FetchError."""
    return environment(cache.cache_folder() / "venvs", name, PEERS[name])


def environment(parent: pathlib.Path, name: str, requirements: Sequence[str]) -> pathlib.Path:
    """The Python of an environment with `requirements`, made under `parent` if it is not there. Raises FetchError."""
    try:
        return cache.environment(parent, name, requirements, say)
    except ExportError as error:
        raise FetchError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the named environments, all by default, and print their Pythons; 1 when one cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.venvs", description="Make the peers' environments.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all by default")
    asked = parser.parse_args(arguments).names or list(PEERS)
    if unknown := sorted(set(asked) - set(PEERS)):
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    try:
        for name in asked:
            print(python_of(name))
    except (FetchError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
