"""What a device that holds one level of an artifact need not fetch of another: whole files, blocks of files, tensors.

    python -m benchmarks.reuse ARTIFACT... [--blocks 4 64 256]

An ARTIFACT is a folder of manifests and blobs, as in `out/artifact` of a run or a ladder. For each pair of its levels,
in MB: all of the second; what of it a device with the first lacks, where files are shared as they are; where blocks of
so many KiB, at multiples of their length, are shared wherever they lie; and where tensors of equal bytes are.
docs/adr/0031 has what was found.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import decode_manifest
from edge_sdk.wire.tensors import read_tensors

KIB = 1024


@dataclass(frozen=True, slots=True)
class Level:
    """A level's files: where they lie, by SHA-256."""

    name: str
    files: dict[str, pathlib.Path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; the exit status."""
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=description)
    parser.add_argument("artifacts", type=pathlib.Path, nargs="+", metavar="ARTIFACT")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 64, 256], metavar="KIB")
    asked = parser.parse_args(arguments)
    levels = [level for folder in asked.artifacts for level in levels_of(folder)]
    print(
        f"{'has':<28} {'wants':<28} {'MB':>8} {'files':>8}", *(f"{k:>4} KiB" for k in asked.blocks), f"{'tensors':>8}"
    )
    for has, wants in itertools.permutations(levels, 2):
        print(f"{has.name:<28} {wants.name:<28}", *(f"{size / 1e6:8.2f}" for size in lacking(has, wants, asked.blocks)))
    return 0


def levels_of(artifact: pathlib.Path) -> Iterator[Level]:
    """The levels of an artifact. Raises OSError, DecodeError."""
    for path in sorted(artifact.glob("*.manifest")):
        blobs = decode_manifest(path.read_bytes()).files.values()
        yield Level(f"{artifact.name}/{path.stem}"[-28:], {b.sha256: artifact / "blobs" / b.sha256 for b in blobs})


def lacking(has: Level, wants: Level, blocks: Sequence[int]) -> list[int]:
    """Bytes: of all that is wanted, of the files that lack, and of what lacks of these by blocks and by tensors."""
    new = [path for sha256, path in wants.files.items() if sha256 not in has.files]
    found = [sum(path.stat().st_size for path in wants.files.values()), sum(path.stat().st_size for path in new)]
    for kib in blocks:
        held = {digest for path in has.files.values() for digest, _ in _blocks(path, kib * KIB)}
        found.append(sum(size for path in new for digest, size in _blocks(path, kib * KIB) if digest not in held))
    held = {digest for path in has.files.values() for digest, _ in _tensors(path)}
    return [*found, sum(size for path in new for digest, size in _tensors(path) if digest not in held)]


def _blocks(path: pathlib.Path, size_bytes: int) -> Iterator[tuple[bytes, int]]:
    with path.open("rb") as file:
        while piece := file.read(size_bytes):
            yield hashlib.sha256(piece).digest(), len(piece)


def _tensors(path: pathlib.Path) -> Iterator[tuple[bytes, int]]:
    """Each tensor of a tensor file, and what is left of the file; another file as a whole."""
    try:
        tensors = [array.tobytes() for array in read_tensors(path).values() if array.size]
    except WireError:
        tensors = []
    for tensor in tensors:
        yield hashlib.sha256(tensor).digest(), len(tensor)
    if left := path.stat().st_size - sum(map(len, tensors)):
        yield path.name.encode(), left


if __name__ == "__main__":
    sys.exit(main())
