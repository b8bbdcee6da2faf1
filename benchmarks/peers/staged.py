"""A peer in an environment of its own: torch exports here, the peer's tools make, and its runtime is measured there.

The stages are `export` (in this environment), then `artifacts FORWARD FOLDER` and `step FOLDER ...`, which a module
runs in the peer's environment. What the first two make is kept in the user's cache folder; the last is a fresh process
and alone in the peak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import venvs
from benchmarks.fetch import FetchError, say
from edge_sdk.wire.blobs import blob_of_file
from edge_sdk.wire.errors import last_line
from export.cache import cache_folder, cached

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ("staged.py", "whole_rows.py", "torch_peft.py", "measure.py")


@dataclass(frozen=True, slots=True)
class Peer:
    """`name` is a key of venvs.PEERS; `<module>.py` exports, `<module>_stages.py` runs in that environment.

    `export(model, targets, batch, tokens, file)` writes what the stage `artifacts` reads; `flags` are further arguments
    of the stage `step`, with what they do.
    """

    name: str
    module: str
    export: Callable[[pathlib.Path, list[str], int, int, pathlib.Path], None]
    flags: dict[str, str] = field(default_factory=dict)


def stage(python: pathlib.Path, peer: Peer, *arguments: str) -> list[str]:
    """The command of a stage, to be run from the repository's root: nothing of ours is installed there."""
    return [str(python), "-m", f"benchmarks.peers.{peer.module}_stages", *arguments]


def artifacts_of(
    peer: Peer, python: pathlib.Path, model: pathlib.Path, targets: list[str], batch: int, tokens: int
) -> pathlib.Path:
    """The folder with what `peer` makes of this model and shape, made if it is not there. Raises FetchError.

    It is made anew for another model, shape, environment or source of these stages.
    """
    here = pathlib.Path(__file__).parent
    files = [*sorted(model.glob("*.json")), *sorted(model.glob("*.safetensors"))]
    files += [here / name for name in (*SHARED, f"{peer.module}.py", f"{peer.module}_stages.py")]
    contents = [blob_of_file(file).sha256 for file in files]
    made_from = json.dumps([targets, batch, tokens, contents, python.parent.parent.name])
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def build(folder: pathlib.Path) -> None:
        forward = folder / "forward"
        say(f"exporting {model.name} with torch, {batch} x {tokens} tokens")
        peer.export(model, targets, batch, tokens, forward)
        say(f"making the artifacts of {peer.name}")
        command = stage(python, peer, "artifacts", str(forward), str(folder))
        # They tell of each graph pass, in thousands of lines that cannot be turned off.
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            last = last_line(done.stderr, "no output")
            msg = f"{peer.name} made no artifacts of {model.name} (exit {done.returncode}): {last}"
            raise FetchError(msg)
        forward.unlink()

    return cached(cache_folder() / "peers" / f"{peer.name}-{digest}", build)


def main(peer: Peer, arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, then measure in the other environment; its exit status, or 1 when something is missing."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{peer.module}")
    parser.add_argument("model", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.set_defaults(flags=[])
    for flag, meaning in peer.flags.items():
        parser.add_argument(f"--{flag}", action="append_const", const=f"--{flag}", dest="flags", help=meaning)
    found = parser.parse_args(arguments)
    model = found.model.resolve()
    try:
        python = venvs.python_of(peer.name)
        folder = artifacts_of(peer, python, model, sorted(found.targets), found.batch, found.tokens)
    except FetchError as error:
        say(f"error: {error}")
        return 1
    vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    numbers = {"vocabulary": vocabulary, "tokens": found.tokens, "batch": found.batch, "steps": found.steps}
    step = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    command = stage(python, peer, "step", str(folder), *step, *found.flags)
    return subprocess.run(command, check=False, cwd=ROOT).returncode
