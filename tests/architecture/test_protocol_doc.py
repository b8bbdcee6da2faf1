"""docs/protocol.md says what the code does: its generated parts are up to date, and it leaves nothing out."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
from collections.abc import Iterable

import pytest

from coordinator.round_states import State
from docs import meanings, protocol
from edge_sdk.phases import Phase
from edge_sdk.wire import delta, manifest, messages
from edge_sdk.wire.keys import KEY_BYTES, Signer
from edge_sdk.wire.messages import KINDS, ChunkRequest, Presence, decode_message
from edge_sdk.wire.signed import read_envelope

PAGE = protocol.PAGE.read_text(encoding="utf-8")
TEXT = re.sub(r"<!-- generated: .*?<!-- end -->", "", PAGE, flags=re.DOTALL)  # what people wrote


def missing(names: Iterable[str], text: str) -> list[str]:
    """Those of `names` that `text` does not name, as code."""
    return [name for name in names if f"`{name}`" not in text]


def defined_in(module: types.ModuleType, kind: object) -> bool:
    """Whether it is an enumeration of that module, and not one that it imports."""
    return isinstance(kind, enum.EnumMeta) and kind.__module__ == module.__name__


def test_generated_parts_are_up_to_date() -> None:
    """`python -m docs.protocol` changes nothing: run it after every change of a message, a state or a bound."""
    assert protocol.rewritten(PAGE) == PAGE


def test_every_part_is_used() -> None:
    """Each part that can be generated stands in the page, once."""
    assert sorted(re.findall(r"<!-- generated: (.+?) -->", PAGE)) == sorted(protocol.PARTS)


def test_an_unknown_part_is_refused() -> None:
    """A misspelt marker is an error, not a part that silently stays as it was."""
    with pytest.raises(KeyError):
        protocol.rewritten("<!-- generated: mesages -->\n<!-- end -->")


@pytest.mark.parametrize(
    "names",
    [list(KINDS), [phase.value for phase in Phase], [state.value for state in State]],
    ids=["messages", "phases", "states"],
)
def test_everything_is_explained(names: list[str]) -> None:
    """Every message, phase and state is named in what people wrote, not in generated parts alone."""
    assert not missing(names, TEXT)


def test_names_of_bounds_exist() -> None:
    """Whatever the text calls by a name in capitals is in the table of bounds."""
    assert not missing(set(re.findall(r"`([A-Z]+_[A-Z_]+)`", TEXT)), protocol.bounds())


def test_meanings_are_of_something() -> None:
    """Every meaning is used: none is left of a field or value that is gone, and none lacks."""
    kinds = (*KINDS.values(), *protocol.INSIDE, *protocol.MANIFEST, delta.DeltaFile, delta.Tensor)
    fields = {(f"{kind.__name__}.{field.name}", field.name) for kind in kinds for field in dataclasses.fields(kind)}
    assert {full if full in meanings.FIELDS else name for full, name in fields} == meanings.FIELDS.keys()
    enums = [kind for module in (messages, manifest) for kind in vars(module).values() if defined_in(module, kind)]
    assert {f"{kind.__name__}.{value.value}" for kind in enums for value in kind} == meanings.VALUES.keys()


def test_example_bytes_decode() -> None:
    """The bytes that the page shows are messages."""
    shown = re.findall(r"```\n([0-9a-f \n]+)```", PAGE)
    plain, signed = [bytes.fromhex(text) for text in shown[:2]], read_envelope(bytes.fromhex(shown[2]))
    assert [type(decode_message(data)) for data in plain] == [Presence, ChunkRequest]
    key = Signer(bytes([1]) * KEY_BYTES).public
    assert signed.verified("FLEET/v1/presence/pi-1", key) == plain[0]
