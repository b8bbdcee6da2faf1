"""Whatever is not true is refused, by the error that was promised, whoever reads it."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import pytest

from benchmarks.reliability.bad_inputs import Outcome, fuzz, read_blocks, read_one
from benchmarks.reliability.corpus import Bad, corpus
from benchmarks.reliability.decoders import Decoder, Unsound, decoders, scratch_folder
from benchmarks.reliability.mutations import mutated


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, Decoder]]:
    """Every decoder."""
    with scratch_folder() as folder:
        yield decoders(pathlib.Path(folder))


def lies() -> list[Bad]:
    """Every bad input that was written by hand."""
    with scratch_folder() as folder:
        return corpus(decoders(pathlib.Path(folder)))


LIES = lies()


def test_there_are_many_and_each_is_another() -> None:
    """At least sixty, for every decoder."""
    assert len({(bad.decoder, bad.lie, bad.data) for bad in LIES}) == len(LIES) >= 60
    assert {bad.decoder for bad in LIES} >= {"message", "manifest", "delta", "validation", "record", "tensors"}


@pytest.mark.parametrize("bad", LIES, ids=lambda bad: f"{bad.decoder}: {bad.lie}")
def test_each_bad_input_is_refused(known: dict[str, Decoder], bad: Bad) -> None:
    """By an error of ours: the reader goes on, and says what was wrong in a line."""
    decoder = known[bad.decoder]
    with pytest.raises(decoder.refusals) as caught:
        decoder.read(bad.data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_true_inputs_are_read(known: dict[str, Decoder]) -> None:
    """The bad ones are bad for what was changed in them."""
    for decoder in known.values():
        for seed in decoder.seeds:
            decoder.read(seed)


def test_mutations_are_refused_or_sound(tmp_path: pathlib.Path) -> None:
    """Thousands of changed inputs: none is accepted wrongly, none raises what was not promised; the seed decides."""
    found, again = (read_blocks(7, 0, 3, tmp_path) for _ in range(2))
    assert found.passed, found.examples
    assert found.tried == 3000
    assert found.refused > found.sound > 0
    assert (found.refused, found.sound) == (again.refused, again.sound)


def test_a_process_with_little_memory_reads_them_too() -> None:
    """In processes of their own, bounded; what they find is added up."""
    found = fuzz(seed=3, inputs=2000, processes=2)
    assert found.passed, found.examples
    assert found.tried == 2000
    assert sum(found.by_decoder.values()) == 2000


def test_mutations_change_something() -> None:
    """Nearly always: what is left as it was would prove nothing."""
    lots = random.Random(0)  # noqa: S311 - repeatable on purpose
    seed = bytes(range(200))
    assert sum(mutated([seed], lots) == seed for _ in range(1000)) < 10


def test_a_decoder_that_accepts_or_falls_over_is_seen() -> None:
    """The count bites: what takes anything, and what raises anything, does not pass."""

    def takes(_data: bytes) -> object:
        msg = "taken"
        raise Unsound(msg)

    def falls(_data: bytes) -> object:
        return dict[str, object]()["key"]

    for read, what in ((takes, "accepted"), (falls, "crashed")):
        outcome = Outcome()
        read_one(Decoder("d", 1, (b"",), read), b"", outcome)
        assert getattr(outcome, what) == 1
        assert not outcome.passed
