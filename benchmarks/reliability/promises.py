"""docs/promises.md, read: which promises there are, what state each is in, and what proves it."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Final

PATH: Final = pathlib.Path(__file__).parents[2] / "docs" / "promises.md"
STATES: Final = ("proven", "partly", "open")


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the table; `proofs` are tests as FILE::NAME, and commands."""

    number: str
    words: str
    state: str
    proofs: tuple[str, ...]


def promises(path: pathlib.Path = PATH) -> list[Promise]:
    """Every promise, in order. Raises ValueError for a line that is none."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("| P"):
            number, words, state, proofs = (cell.strip() for cell in line.strip("|").split("|"))
            if state not in STATES:
                msg = f"{number} is {state!r}: one of {', '.join(STATES)}"
                raise ValueError(msg)
            found.append(Promise(number, words, state, tuple(re.findall(r"`([^`]+)`", proofs))))
    return found
