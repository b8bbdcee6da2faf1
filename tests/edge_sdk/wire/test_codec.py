"""The codec gives back what it was given, and turns every other sequence of bytes into one kind of error."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Mapping

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.codec import MAX_COMPLAINT, MAX_INTEGER, MAX_ITEMS, decode, encode, unpack
from edge_sdk.wire.errors import DecodeError, TooLargeError, WireError
from tests.edge_sdk.wire.strategies import values


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One within another, with a rule of its own."""

    size: int

    def __post_init__(self) -> None:
        """Refuse a negative size."""
        if self.size < 0:
            msg = "a negative size"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, slots=True)
class Everything:
    """Every kind of field that the codec knows."""

    text: str
    data: bytes
    number: float
    truth: bool
    colour: Colour
    sizes: tuple[int, ...]
    parts: Mapping[str, Part]
    names: frozenset[str]
    by_colour: Mapping[Colour, int]
    maybe: Part | None
    later: int = 7


PART = st.builds(Part, st.integers(0, (1 << 63) - 1))
EVERYTHING = st.builds(
    Everything,
    text=values(str),
    data=values(bytes),
    number=values(float),
    truth=values(bool),
    colour=st.sampled_from(Colour),
    sizes=values(tuple[int, ...]),
    parts=st.dictionaries(st.text(max_size=5), PART, max_size=3),
    names=st.frozensets(st.text(max_size=8), max_size=4),
    by_colour=st.dictionaries(st.sampled_from(Colour), st.integers(0, 9)),
    maybe=st.none() | PART,
    later=values(int),
)
PARTS, SETS = {"p": Part(3)}, (frozenset("ba"), {Colour.BLUE: 1})
SAMPLE = Everything("a", b"b", 1.5, True, Colour.RED, (1, 2), PARTS, *SETS, Part(4))  # noqa: FBT003 - every field
PLAIN = {
    "text": "a",
    "data": b"b",
    "number": 1.5,
    "truth": True,
    "colour": "red",
    "sizes": [1, 2],
    "parts": {"p": {"size": 3}},
    "names": ["a", "b"],
    "by_colour": {"blue": 1},
    "maybe": {"size": 4},
    "later": 7,
}
LIMIT = 1 << 16


def read(data: bytes) -> Everything:
    """The bytes as `Everything`."""
    return decode(Everything, data, LIMIT)


def packed(**changes: object) -> bytes:
    """The sample's bytes with some of its values replaced by others, of any type."""
    data: bytes = msgpack.packb({**PLAIN, **changes})
    return data


@given(EVERYTHING)
def test_what_goes_in_comes_out(value: Everything) -> None:
    """Every value survives, and equal values have equal bytes."""
    data = encode(value)
    assert read(data) == value
    assert encode(read(data)) == data


def test_the_bytes_are_plain_msgpack() -> None:
    """Any msgpack library reads what we write: maps by field name, arrays, enum values."""
    assert msgpack.unpackb(encode(SAMPLE)) == PLAIN
    assert read(packed()) == SAMPLE


def test_a_newer_peer_may_say_more_and_an_older_one_less() -> None:
    """Unknown fields are passed over, a missing one takes its default."""
    assert read(packed(invented=[1, {"a": 2}])) == SAMPLE
    assert read(msgpack.packb({name: value for name, value in PLAIN.items() if name != "later"})) == SAMPLE
    with pytest.raises(DecodeError, match="lacks colour, text"):
        read(msgpack.packb({name: value for name, value in PLAIN.items() if name not in {"text", "colour"}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"text": 1},
        {"text": b"a"},
        {"text": None},
        {"data": "b"},
        {"number": "1.5"},
        {"number": True},
        {"number": float("nan")},
        {"number": float("inf")},
        {"truth": 1},
        {"colour": "green"},
        {"colour": 0},
        {"sizes": 1},
        {"sizes": [1.0]},
        {"sizes": [True]},
        {"sizes": {"a": 1}},
        {"parts": [1]},
        {"parts": {b"p": {"size": 1}}},
        {"parts": {"p": {"size": 1.0}}},
        {"parts": {"p": {"size": -1}}},
        {"maybe": {}},
        {"maybe": 4},
        {"maybe": {"size": -1}},
        {"later": None},
    ],
    ids=str,
)
def test_no_value_becomes_another_type(changes: dict[str, object]) -> None:
    """A field of the wrong type, or one that its dataclass refuses, is an error that names it."""
    (name,) = changes
    with pytest.raises(DecodeError, match=rf"^Everything\.{name}\b"):
        read(packed(**changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"colour": "green"}, "Everything.colour: 'green' is not a valid Colour"),
        ({"parts": {"p": {"size": -1}}}, "Everything.parts['p']: a negative size"),
        ({"parts": {"p": {"size": 1.0}}}, "Everything.parts['p'].size is a float, a int is needed"),
        ({"sizes": [1, True]}, "Everything.sizes[1] is a bool, a int is needed"),
    ],
    ids=str,
)
def test_a_complaint_leads_to_the_value(changes: dict[str, object], complaint: str) -> None:
    """However deep it stands, the way to it is said once, and then what is wrong with it."""
    with pytest.raises(DecodeError) as caught:
        read(packed(**changes))
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode(SAMPLE) + b"\x00",
        b"\x82\xa4size\x01\xa4size\x02",  # the same key twice
        b"\x81\x01\x02",  # a number as a key
        b"\xa2\xff\xfe",  # no UTF-8
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc7\x00\x05",  # an empty extension
        b"\x91" * 5000 + b"\x90",  # nested too deep
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xdf\x7f\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",  # two gigabytes of data, announced
        b"\xdb\xff\xff\xff\xff",
    ],
    ids=range(13),
)
def test_what_is_not_ours_is_refused(data: bytes) -> None:
    """Every way that bytes can fail to be one of our values ends in a DecodeError."""
    for kind in (Everything, Part):
        with pytest.raises(DecodeError):
            decode(kind, data, LIMIT)


def test_bounds_are_exact() -> None:
    """As many bytes, and as many items, as are promised; not one more."""
    data = encode(SAMPLE)
    assert decode(Everything, data, len(data)) == SAMPLE
    with pytest.raises(TooLargeError):
        decode(Everything, data, len(data) - 1)
    assert unpack(msgpack.packb([None] * MAX_ITEMS), 1 << 20) == [None] * MAX_ITEMS
    with pytest.raises(DecodeError):
        unpack(msgpack.packb([None] * (MAX_ITEMS + 1)), 1 << 20)
    assert decode(Part, encode(Part(MAX_INTEGER)), LIMIT) == Part(MAX_INTEGER)
    with pytest.raises(DecodeError, match="size is"):  # SQLite has no column for it
        decode(Part, encode(Part(MAX_INTEGER + 1)), LIMIT)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([Everything, Part]))
def test_any_bytes_are_a_value_or_an_error_of_ours(data: bytes, kind: type[object]) -> None:
    """Whatever arrives, nothing but a WireError is raised."""
    with contextlib.suppress(WireError):
        assert isinstance(decode(kind, data, LIMIT), kind)


def test_a_complaint_is_one_short_line() -> None:
    """However long the wrong value is, whoever logs the error logs one line."""
    for changes in ({"colour": "x\n" * 5000}, {"parts": {"n\n" * 5000: 1}}):
        with pytest.raises(DecodeError) as caught:
            read(packed(**changes))
        assert len(str(caught.value)) <= MAX_COMPLAINT
        assert "\n" not in str(caught.value)
