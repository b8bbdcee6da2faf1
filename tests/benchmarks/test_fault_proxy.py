"""The network gets as bad as asked for, the same way for the same seed, and no worse."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reliability.misfortune import Course, Ending, Misfortune
from benchmarks.reliability.proxy import FaultProxy

PATIENCE_S = 60.0
misfortunes = st.builds(
    Misfortune,
    latency_s=st.floats(0, 1),
    jitter_s=st.floats(0, 1),
    bytes_s=st.sampled_from([0.0, 1e3]),
    slice_bytes=st.integers(0, 300),
    flips=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
    cut_after_bytes=st.integers(0, 3000),
)


def suffered(course: Course, data: bytes, cuts: list[int]) -> tuple[bytes, list[tuple[int, float]]]:
    """What passes when `data` comes in parts that end at `cuts`, and how late each of its bytes is, in runs."""
    passed, late = b"", list[tuple[int, float]]()
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        for piece in course.suffer(data[start:end]):
            if not late or late[-1][1] != piece.late_s:
                late.append((len(passed), piece.late_s))
            passed += piece.data
    return passed, late


@given(misfortunes, st.binary(max_size=4000), st.lists(st.integers(0, 4000), max_size=8), st.integers(0, 9))
def test_what_befalls_a_byte_depends_on_its_place_alone(
    misfortune: Misfortune, data: bytes, cuts: list[int], seed: int
) -> None:
    """However the stream is read, the same bytes change, are late, and are cut off; nothing else is."""
    cuts = sorted(min(cut, len(data)) for cut in cuts)
    whole, parts = (Course(misfortune, f"{seed}") for _ in range(2))
    once, again = suffered(whole, data, []), suffered(parts, data, cuts)
    assert once == again
    assert whole.ended == parts.ended
    cut = misfortune.cut_after_bytes
    assert len(once[0]) == (min(cut, len(data)) if cut else len(data))
    assert whole.ended == bool(cut and len(data) >= cut)
    changed = [a ^ b for a, b in zip(once[0], data, strict=False) if a != b]
    assert all(bits.bit_count() == 1 for bits in changed)
    assert len(changed) == whole.injected["flips"]
    if misfortune.flips in {0.0, 1.0}:
        assert len(changed) == misfortune.flips * len(once[0])


class Echo:
    """A server that says back what it hears."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._say_back, args=(connection,), daemon=True).start()

    def _say_back(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A server that says back what it hears."""
    server = Echo()
    yield server
    server.listening.close()


def heard(port: int, said: bytes, wait_s: float = PATIENCE_S) -> tuple[bytes, str]:
    """What comes back of `said`, and how it ended: whole, closed, reset or silent.

    A reset may come before the connect has returned, while it does, or after it.
    """
    found = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            sender = threading.Thread(target=_send, args=(client, said), daemon=True)
            sender.start()
            client.settimeout(wait_s)
            while len(found) < len(said):
                data = client.recv(65536)
                if not data:
                    return found, "closed"
                found += data
    except ConnectionResetError:
        return found, "reset"
    except TimeoutError:
        return found, "silent"
    return found, "whole"


def _send(client: socket.socket, said: bytes) -> None:
    try:
        client.sendall(said)
    except OSError:
        return


def proxied(echo: Echo, said: bytes, seed: int = 0, wait_s: float = PATIENCE_S, **changes: Any) -> tuple[bytes, str]:
    """`said` to the server and back through a proxy whose `down` is so bad."""
    with FaultProxy(echo.port, seed, down=Misfortune(**changes)) as proxy:
        return heard(proxy.port, said, wait_s)


SAID = bytes(range(256)) * 400


def test_without_misfortune_everything_passes(echo: Echo) -> None:
    """A connection through it is like one without it, and slices and delays change no byte."""
    assert proxied(echo, SAID) == (SAID, "whole")
    assert proxied(echo, SAID, slice_bytes=7000, jitter_s=0.01) == (SAID, "whole")


def test_flips_are_those_of_the_seed(echo: Echo) -> None:
    """Two runs of one seed corrupt the same bytes, another seed others."""
    first, again, other = (proxied(echo, SAID, seed, flips=1e-3)[0] for seed in (1, 1, 2))
    assert first == again
    assert len({first, other, SAID}) == 3
    assert sum(a != b for a, b in zip(first, SAID, strict=True)) < 300


def test_a_connection_is_closed_after_so_many_bytes(echo: Echo) -> None:
    """In order: what came before the cut arrives."""
    assert proxied(echo, SAID, cut_after_bytes=5000, ending=Ending.CLOSE) == (SAID[:5000], "closed")


def test_a_connection_is_reset(echo: Echo) -> None:
    """Without order: a reset may overtake what was sent before it."""
    found, how = proxied(echo, SAID, cut_after_bytes=5000, ending=Ending.RESET)
    assert how == "reset"
    assert SAID[:5000].startswith(found)


def test_a_black_hole_says_nothing(echo: Echo) -> None:
    """Half-open: what came before arrives, then neither bytes nor an end."""
    found = proxied(echo, SAID, wait_s=0.5, cut_after_bytes=5000, ending=Ending.BLACK_HOLE)
    assert found == (SAID[:5000], "silent")


def test_latency_and_bandwidth_take_their_time(echo: Echo) -> None:
    """At least as long as asked for."""
    began_s = time.monotonic()
    assert proxied(echo, SAID[:30_000], latency_s=0.2, bytes_s=1e5) == (SAID[:30_000], "whole")
    assert time.monotonic() - began_s >= 0.2 + 0.3 - 0.01


def test_connections_are_broken_when_asked(echo: Echo) -> None:
    """All that are connected are reset; the next one is not. What was injected is counted."""
    with FaultProxy(echo.port, seed=0) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as client:
            client.sendall(b"here")
            assert client.recv(4) == b"here"
            assert proxy.break_all() == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert heard(proxy.port, SAID) == (SAID, "whole")
        assert proxy.injected["reset"] == 1
        assert proxy.connections == 2


def test_a_target_that_is_not_there_is_refused() -> None:
    """Who connects through the proxy learns it as without one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with FaultProxy(port, seed=0) as proxy:
        assert heard(proxy.port, b"x")[1] in {"reset", "closed"}
