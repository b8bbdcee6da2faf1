"""Where a broker is, and by what both ends know each other: its URL, three files, and the rule of who may do without.

`mqtt://host[:port]` is plain, for this machine alone. `mqtts://host[:port]` is TLS in which both sides show a
certificate of the fleet's own authority: a device's name on the broker is the one in its certificate. What goes wrong
with certificates is said in a line that names the file or the name that is wrong; OpenSSL's own words name neither.
"""

from __future__ import annotations

import ipaddress
import pathlib
import ssl
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edge_sdk.wire.errors import why_unreadable
from edge_sdk.wire.settings import SettingsError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PORT, TLS_PORT = 1883, 8883
URL_RULE: Final = "write mqtt://host:port, or mqtts://host:port for TLS, with a port from 1 to 65535"
MAKES_THEM: Final = "`fedpeat broker init` makes certificates"

# X509_V_ERR_*, https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID, _EXPIRED, _HOST, _ADDRESS, _PURPOSE = 9, 10, 62, 64, 26
# What the broker says of our certificate (TLS alerts, RFC 8446, section 6.2), as OpenSSL spells it.
_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": "it is expired",
    "CERTIFICATE_REVOKED": "it is revoked",
    "UNKNOWN_CA": "it is not from the authority that the broker trusts",
    "BAD_CERTIFICATE": "it is not acceptable",
    "UNSUPPORTED_CERTIFICATE": "it is not a client's",
    "CERTIFICATE_UNKNOWN": "it is not acceptable",
    "CERTIFICATE_REQUIRED": "it got none",
    "DECRYPT_ERROR": "it is not from the authority that the broker trusts",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, whatever any name server says."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Three PEM files: the authority's certificate, and this side's own certificate with its key."""

    ca: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path


def address(url: str) -> Address:
    """What a URL says, and nothing besides: what we would ignore is refused. Raises ValueError with the rule."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(URL_RULE) from error
    extra = parts.username or parts.password or parts.path.strip("/") or parts.query or parts.fragment or port == 0
    if (
        parts.scheme not in {"mqtt", "mqtts"}
        or not parts.hostname
        or extra
        or parts.hostname.split() != [parts.hostname]
    ):
        raise ValueError(URL_RULE)
    tls = parts.scheme == "mqtts"
    return Address(parts.hostname, port or (TLS_PORT if tls else PORT), tls)


def broker_url(url: str) -> str:
    """The URL itself, for a configuration's field. Raises ValueError with the rule."""
    address(url)
    return url


def check_broker(url: str, tls: TlsFiles | None, *, insecure: bool) -> None:
    """Refuse what would leave this machine without certificates on both ends, unless `insecure`; and wrong files.

    Raises SettingsError with one line.
    """
    try:
        found = address(url)
    except ValueError as error:
        msg = f"broker {url!r}: {error}"
        raise SettingsError(msg) from error
    if found.tls and tls is None:
        msg = f"{url} needs a tls table with ca, certificate and key: {MAKES_THEM}"
        raise SettingsError(msg)
    if tls is not None and not found.tls:
        msg = f"there is a tls table, and {url} would not use it: write mqtts://"
        raise SettingsError(msg)
    if not (found.tls or found.is_loopback or insecure):
        msg = (
            f"broker {found.host} is another machine, and mqtt:// neither encrypts nor tells devices apart: "
            f"use mqtts:// with certificates ({MAKES_THEM}), or pass --insecure if that network is yours alone"
        )
        raise SettingsError(msg)
    if tls is not None:
        context(tls)


def context(files: TlsFiles) -> ssl.SSLContext:
    """What a client needs to speak TLS, 1.2 or newer, with these files. Raises SettingsError with one line."""
    for path, begin in ((files.ca, "CERTIFICATE"), (files.certificate, "CERTIFICATE"), (files.key, "PRIVATE KEY")):
        _require(path, begin)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.sslsocket_class = Socket
    try:
        made.load_verify_locations(files.ca)
    except ssl.SSLError as error:
        msg = f"{files.ca} holds no certificate that can be read: {_reason(error)}"
        raise SettingsError(msg) from error
    try:
        made.load_cert_chain(files.certificate, files.key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            msg = f"{files.key} is not the key of {files.certificate}: give both of one device"
        else:
            msg = f"{files.certificate} and {files.key} cannot be used: {_reason(error)}"
        raise SettingsError(msg) from error
    return made


class Socket(ssl.SSLSocket):
    """Keeps the error that ended it: paho says no more than that the connection is lost.

    In TLS 1.3 a broker refuses a certificate after the handshake, when we speak already: what it said is then found
    by reading, though it is our writing that fails.
    """

    error: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is inherited
        """See SSLSocket; paho leaves one that failed open. Raises OSError."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See socket. Raises OSError."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.error = error
            raise

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """See socket. Raises OSError."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.recv(1)
            raise


def why_no_tls(error: ssl.SSLError, host: str, files: TlsFiles) -> str:
    """What is wrong, where, and what to do, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _why_not_theirs(error, host, files)
    reason = error.reason or ""
    for alert, why in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return f"the broker refuses our certificate {files.certificate}: {why}"
    if reason in {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"}:
        return "it does not speak TLS there: is the port right? MQTT's over TLS is 8883"
    return f"TLS failed: {_reason(error)}"


def _why_not_theirs(error: ssl.SSLCertVerificationError, host: str, files: TlsFiles) -> str:
    code = error.verify_code
    if code in {_HOST, _ADDRESS}:
        return f"the broker's certificate is not for {host}: use a name or address that it was made for"
    if code == _EXPIRED:
        return f"the broker's certificate is expired, or this machine's clock is wrong: it says {_today()}"
    if code == _NOT_YET_VALID:
        return f"the broker's certificate is not valid yet: is this machine's clock right? It says {_today()}"
    if code == _PURPOSE:
        return "the certificate that answers is not a broker's: somebody else may be there"
    return f"the broker's certificate is not from the authority in {files.ca}: {error.verify_message}"


def _require(path: pathlib.Path, begin: str) -> None:
    """Refuse a file that is not there, or is not what it should be. Raises SettingsError."""
    what = "private key" if "KEY" in begin else "certificate"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {why_unreadable(error)}"
        raise SettingsError(msg) from error
    if "-----BEGIN" not in text or f"{begin}-----" not in text:
        msg = f"{path} holds no {what} in PEM, which begins with a line like -----BEGIN {begin}-----"
        raise SettingsError(msg)
    if "ENCRYPTED PRIVATE" in text or ",ENCRYPTED" in text:
        msg = f"{path} is encrypted, and nobody is there to be asked for the password: decrypt it"
        raise SettingsError(msg)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
