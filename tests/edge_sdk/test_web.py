"""Blobs from a web server that may be good, lie, stop, dawdle, send elsewhere, or not be there."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import pathlib
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from coordinator.authority import make_authority
from edge_sdk.events import FetchFiles, FilesHere
from edge_sdk.fetcher import Fetcher
from edge_sdk.store import DeviceStore
from edge_sdk.web import Wanted, Web
from edge_sdk.wire import web
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of
from edge_sdk.wire.chunks import Download, read_chunk, requested
from edge_sdk.wire.messages import CHUNK_BYTES, Chunk
from edge_sdk.wire.web import SourceError, base, chunks
from tests.edge_sdk.samples import MB, make_manifest, make_task
from tests.edge_sdk.wire.lines import SIZE, content

PATIENCE_S = 60.0


class _Handler(http.server.BaseHTTPRequestHandler):
    """Gives `server.data` as `server.manner` says."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.asked.append((self.path, self.headers["Range"]))
        data, manner = server.data, server.manner
        begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if manner == "redirects":
            self.send_response(302)
            self.send_header("Location", "https://elsewhere.example/")
        elif manner == "is not there":
            self.send_response(404)
        elif manner == "has no ranges":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_response(206)
            end = len(data) if manner != "has more" else 10**12
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        with contextlib.suppress(OSError):
            self._body(data[begin:], manner)

    def _body(self, data: bytes, manner: str) -> None:
        if manner == "lies":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif manner == "stops":
            data = data[: len(data) // 2]
        elif manner == "dawdles":
            for byte in data[:10_000]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
            return
        if manner not in {"redirects", "is not there"}:
            self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Nothing is printed."""


class Server(http.server.ThreadingHTTPServer):
    """A server with a certificate, in threads of this process."""

    daemon_threads = True

    def __init__(self, data: bytes, manner: str, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.manner, self.asked = data, manner, list[tuple[str, str]]()
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        """Where blobs are."""
        return f"https://127.0.0.1:{self.server_address[1]}/blobs/"


@dataclasses.dataclass(slots=True)
class Site:
    """Starts servers that the system's authorities vouch for."""

    context: ssl.SSLContext
    servers: list[Server] = dataclasses.field(default_factory=list)

    def serve(self, data: bytes, manner: str = "gives") -> Server:
        """A server, until the test ends."""
        server = Server(data, manner, self.context)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return server


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A certificate, and an authority that this machine believes."""
    make_authority("web").issue_broker(["127.0.0.1"], tmp_path / "tls", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "broker.crt", tmp_path / "tls" / "broker.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls" / "ca.crt"))
    made = Site(context)
    yield made
    for server in made.servers:
        server.shutdown()
        server.server_close()


def came(url: str, blob: Blob, first: int = 0) -> list[Chunk]:
    """All that a server gives. Raises SourceError."""
    return list(chunks(base(url), blob, SIZE, first))


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_server_gives_what_is_asked_for(site: Site, first: int) -> None:
    """From the first chunk that lacks to the end, in chunks as a broker's, and one request."""
    data = content(9 * SIZE + 5)
    server = site.serve(data)
    found = came(server.url, blob_of(data), first)
    assert b"".join(bytes(chunk.data) for chunk in found) == data[first * SIZE :]
    assert [chunk.index for chunk in found] == list(range(first, 10))
    assert server.asked == [(f"/blobs/{blob_of(data).sha256}", f"bytes={first * SIZE}-")]


def test_a_server_without_ranges_serves_from_the_beginning(site: Site) -> None:
    """All of it, where all is wanted; what is half here is not begun anew."""
    data = content(3 * SIZE)
    server = site.serve(data, "has no ranges")
    assert len(came(server.url, blob_of(data))) == 3
    with pytest.raises(SourceError, match="answers 200"):
        came(server.url, blob_of(data), 1)


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        ("stops", "ends"),
        ("redirects", "answers 302"),
        ("is not there", "answers 404"),
        ("has more", "answers 206"),
        ("dawdles", "slow"),
    ],
)
def test_a_server_that_is_no_use_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch, manner: str, why: str
) -> None:
    """Cut off, elsewhere, not there, of another size, or too slow: an error that says so, and no more is read."""
    monkeypatch.setattr(web, "SILENCE_S", 1.0)
    data = content(3 * SIZE)
    with pytest.raises(SourceError, match=why):
        came(site.serve(data, manner).url, blob_of(data))


def test_whom_nobody_vouches_for_is_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of no authority that this machine believes: nothing is sent to its owner."""
    server = site.serve(b"data")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
        came(server.url, blob_of(b"data"))
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.5/blobs/",
        "http://example.com/",
        "ftp://127.0.0.1/",
        "https://me:secret@example.com/",
        "https://example.com/?a=b",
        "https://example.com/#a",
        "https:///blobs",
        "https://example.com/a b",
        "https://example.com/a\r\nX: y",
        "https://example.com:0/",
        f"https://example.com/{'a' * 500}",
    ],
)
def test_what_is_no_source(url: str) -> None:
    """Plain http beyond this machine, passwords, queries, and what would break a request's line."""
    with pytest.raises(ValueError, match="write https"):
        base(url)
    assert base("http://127.0.0.1:8000/blobs") == base("http://127.0.0.1:8000/blobs/")


@pytest.mark.parametrize("manner", ["gives", "lies", "stops", "is not there"])
def test_a_device_gets_its_files_whatever_a_server_does(site: Site, tmp_path: pathlib.Path, manner: str) -> None:
    """From the server alone where it is good; else from the coordinator: what lacks, or all where it lied."""
    data = content(6 * CHUNK_BYTES + 7)
    coordinator, store = BlobStore(tmp_path / "coordinator"), DeviceStore(tmp_path / "device", 100 * MB)
    small = {name: coordinator.put(name.encode()) for name in make_manifest().files}
    manifest = dataclasses.replace(make_manifest(), files={**small, "tensors": coordinator.put(data)})
    server = site.serve(data, manner)
    task = make_task(artifact=coordinator.put(b"artifact"), adapter=coordinator.put(b"adapter"))
    task = dataclasses.replace(task, sources=(server.url,))
    fetcher, reader, outcome, pulled = Fetcher(store, 0), Web(lambda: None), None, 0
    assert fetcher.begin(FetchFiles(task, manifest)) is None
    until_s = time.monotonic() + PATIENCE_S
    while outcome is None and time.monotonic() < until_s:
        requests = fetcher.requests(0.0)
        assert isinstance(requests, list)
        if not reader.blob and (wanted := fetcher.wanted_of_web()) is not None:
            reader.begin(wanted)
        if isinstance(one := reader.take(), Chunk):
            outcome = fetcher.take(one, 0.0)
        elif one is not None:
            fetcher.web_ended(one.blob)
        for request in requests:
            blob = Blob(request.blob, coordinator.path(request.blob).stat().st_size)
            for index in requested(request, blob.size_bytes):
                pulled += blob.sha256 == blob_of(data).sha256
                outcome = fetcher.take(read_chunk(coordinator, blob, request.chunk_bytes, index), 0.0) or outcome
        time.sleep(0.001)
    reader.stop()
    assert isinstance(outcome, FilesHere)
    assert store.blobs.read(manifest.files["tensors"]) == data
    assert len(server.asked) == 1
    assert {"gives": pulled == 0, "lies": pulled == 7, "stops": 0 < pulled < 7, "is not there": pulled == 7}[manner]


def test_who_stops_hears_no_more(site: Site, tmp_path: pathlib.Path) -> None:
    """A reader that is stopped while chunks wait ends its thread, and gives nothing of the old to the new."""
    data = content(200 * SIZE)
    server, reader = site.serve(data), Web(lambda: None)
    download = Download(BlobStore(tmp_path / "store"), blob_of(data), 0.0, 0, chunk_bytes=SIZE)
    reader.begin(Wanted(server.url, download.blob, SIZE, 0))
    until_s = time.monotonic() + PATIENCE_S
    while not isinstance(reader.take(), Chunk) and time.monotonic() < until_s:
        time.sleep(0.001)
    reader.stop()
    assert reader.blob == ""
    assert reader.take() is None
    while any(thread.name == "web" for thread in threading.enumerate()) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not any(thread.name == "web" for thread in threading.enumerate())
