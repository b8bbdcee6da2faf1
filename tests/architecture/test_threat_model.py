"""docs/threat-model.md promises nothing that no test shows."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
TESTS = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", PAGE)


def test_every_line_names_a_test() -> None:
    """A line of a table has one or more in its last cell."""
    assert len(ROWS) > 20
    assert not [row for row in ROWS if not re.search(r"`tests/\S+::\w+`", row.split("|")[2])]


def test_every_test_that_is_named_exists() -> None:
    """As a function, or as a state machine's case, in the file that is named."""
    missing = []
    for path, test in TESTS:
        text = (ROOT / path).read_text(encoding="utf-8")
        if not re.search(rf"^(def {test}\(|{test} = )", text, re.MULTILINE):
            missing.append(f"{path}::{test}")
    assert not missing
