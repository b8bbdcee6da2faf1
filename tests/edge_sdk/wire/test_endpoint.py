"""Who may speak to which broker, and what is said of URLs and files that are wrong."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from coordinator.authority import load_authority, make_authority
from edge_sdk.wire.endpoint import Address, TlsFiles, address, broker_url, check_broker, context
from edge_sdk.wire.settings import SettingsError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A device's files."""
    folder = tmp_path_factory.mktemp("device")
    make_authority("garden").issue_client("pi-1", folder, 10)
    return TlsFiles(ca=folder / "ca.crt", certificate=folder / "client.crt", key=folder / "client.key")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("mqtt://localhost", Address("localhost", 1883, tls=False)),
        ("mqtt://10.0.0.5:1884", Address("10.0.0.5", 1884, tls=False)),
        ("mqtts://broker.local", Address("broker.local", 8883, tls=True)),
        ("mqtts://[::1]:65535", Address("::1", 65535, tls=True)),
    ],
)
def test_a_url_says_host_port_and_tls(url: str, found: Address) -> None:
    """The port is that of the scheme unless it is given."""
    assert address(url) == found
    assert broker_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "host:1883", "http://x", "mqtt://", "mqtt://h/x", "mqtt://me:secret@h", "mqtt://h:x", "mqtt://h:99999"),
        *("mqtt://h:0", "mqtts://h?x=1", "mqtts://a b", "mqtt://[", "mqtts://h:-1"),
    ],
)
def test_what_is_no_url_of_ours_is_refused(url: str) -> None:
    """Also what would be ignored, a path or a password; the line says how to write it."""
    with pytest.raises(ValueError, match="write mqtt://host:port, or mqtts://"):
        address(url)


@given(st.text(st.sampled_from("a1.:/@[]?# \t-%\u00e9\u0130"), max_size=20))
def test_no_text_crashes_the_reader(url: str) -> None:
    """Any text is an address, or is refused with the rule."""
    try:
        found = address(f"mqtt://{url}")
    except ValueError as error:
        assert "write mqtt://" in str(error)  # noqa: PT017 - most texts are no error
    else:
        assert found.host
        assert 0 < found.port < 1 << 16


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.8.0.1", "[::1]")),
        *((host, False) for host in ("10.0.0.5", "broker.local", "localhost.evil.org", "127.0.0.1.evil.org")),
    ],
)
def test_another_machine_needs_certificates_or_consent(host: str, made: TlsFiles, *, ours: bool) -> None:
    """Plain MQTT is for this machine; mqtts with certificates, or --insecure, is for any."""
    if ours:
        check_broker(f"mqtt://{host}", None, insecure=False)
    else:
        with pytest.raises(SettingsError, match="--insecure"):
            check_broker(f"mqtt://{host}", None, insecure=False)
    check_broker(f"mqtt://{host}", None, insecure=True)
    check_broker(f"mqtts://{host}", made, insecure=False)


@pytest.mark.parametrize("insecure", [True, False])
def test_the_scheme_and_the_files_go_together(made: TlsFiles, *, insecure: bool) -> None:
    """TLS without files, or files without TLS, is a mistake that consent does not make good."""
    with pytest.raises(SettingsError, match=r"needs a tls table .*fedpeat broker init"):
        check_broker("mqtts://localhost", None, insecure=insecure)
    with pytest.raises(SettingsError, match="write mqtts://"):
        check_broker("mqtt://localhost", made, insecure=insecure)


def encrypted(path: pathlib.Path) -> bytes:
    """The same key, behind a password."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(kind, form, serialization.BestAvailableEncryption(b"secret"))


def test_every_wrong_file_is_named(made: TlsFiles, tmp_path: pathlib.Path) -> None:
    """Missing, a folder, binary, empty, of another kind, cut off, locked, of another device: one line each."""
    other = tmp_path / "other"
    make_authority("garden").issue_client("pi-2", other, 10)
    cut = tmp_path / "cut"
    cut.write_bytes(b"\n".join([*made.ca.read_bytes().splitlines()[:4], b"-----END CERTIFICATE-----\n"]))
    binary, empty, locked = tmp_path / "binary", tmp_path / "empty", tmp_path / "locked"
    binary.write_bytes(b"\xff\xfe")
    empty.write_bytes(b"")
    locked.write_bytes(encrypted(made.key))
    wrong = [
        ({"ca": tmp_path / "none"}, "none: cannot be read: No such file"),
        ({"ca": tmp_path}, "cannot be read: Is a directory"),
        ({"ca": binary}, "binary: cannot be read: it is not UTF-8"),
        ({"ca": empty}, "empty holds no certificate"),
        ({"ca": made.key}, "client.key holds no certificate"),
        ({"ca": cut}, "cut holds no certificate that can be read"),
        ({"certificate": made.key, "key": made.certificate}, "client.key holds no certificate"),
        ({"certificate": cut}, "cut and .*client.key cannot be used"),
        ({"key": made.certificate}, "client.crt holds no private key"),
        ({"key": locked}, "locked is encrypted"),
        ({"key": other / "client.key"}, "other/client.key is not the key of .*client.crt"),
    ]
    for changes, words in wrong:
        with pytest.raises(SettingsError, match=words) as caught:
            context(dataclasses.replace(made, **changes))
        assert "\n" not in str(caught.value)


def test_an_authority_is_read_back(tmp_path: pathlib.Path) -> None:
    """What it signs afterwards is believed by whoever believed it before."""
    made = make_authority("garden")
    made.save(tmp_path / "authority")
    found = load_authority(tmp_path / "authority")
    assert found.pem == made.pem
    assert (tmp_path / "authority" / "ca.key").stat().st_mode & 0o777 == 0o600
