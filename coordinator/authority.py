"""A fleet's own certificate authority: it says which name belongs to which key, and nothing else.

X.509 as RFC 5280 has it, keys on P-256. The authority may sign what is used, and nothing that signs in turn. A client's
certificate is of no use to pose as the broker, nor the broker's as a client. Whoever has `ca.key` can make any name:
keep it off the broker's machine.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.errors import ConfigError
from edge_sdk.wire.errors import os_error_line

CA, KEY = "ca.crt", "ca.key"
AUTHORITY_DAYS: Final = 3650
SLACK: Final = dt.timedelta(days=1)  # a board without a clock of its own may be that late
MAX_COMMON_NAME: Final = 64  # RFC 5280, appendix A.1, ub-common-name
PRIVATE, PUBLIC = 0o600, 0o644
LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1035, section 2.3.1
HOST: Final = re.compile(rf"{LABEL}(\.{LABEL})*")
MAX_HOST: Final = 253


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate that everybody trusts, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def save(self, folder: pathlib.Path) -> None:
        """Write both files into a new folder. Raises OSError."""
        folder.mkdir(parents=True)
        write_new(folder / CA, self.pem, PUBLIC)
        write_new(folder / KEY, _key_pem(self.key), PRIVATE)

    @property
    def pem(self) -> bytes:
        """The certificate, as files hold it."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue_client(self, name: str, folder: pathlib.Path, days: int) -> None:
        """A client's `ca.crt`, `client.crt` and `client.key` in a folder; `name` is who it is. Raises OSError."""
        self._issue(name, folder, "client", days, ExtendedKeyUsageOID.CLIENT_AUTH)

    def issue_broker(self, hosts: Sequence[str], folder: pathlib.Path, days: int) -> None:
        """The broker's `ca.crt`, `broker.crt` and `broker.key` in a folder, for these names and addresses.

        Raises OSError.
        """
        named = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        self._issue(hosts[0][:MAX_COMMON_NAME], folder, "broker", days, ExtendedKeyUsageOID.SERVER_AUTH, named)

    def revoked(self, certificates: Sequence[bytes]) -> bytes:
        """A list, in PEM, of certificates that are not to be believed any more. It is good as long as the authority."""
        now = _now()
        made = x509.CertificateRevocationListBuilder(self.certificate.subject)
        made = made.last_update(now - SLACK).next_update(self.certificate.not_valid_after_utc)
        for pem in certificates:
            serial = x509.load_pem_x509_certificate(pem).serial_number
            one = x509.RevokedCertificateBuilder(serial).revocation_date(now)
            made = made.add_revoked_certificate(one.build())
        made = made.add_extension(self._key_identifier(), critical=False)
        made = made.add_extension(x509.CRLNumber(len(certificates)), critical=False)
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        folder: pathlib.Path,
        stem: str,
        days: int,
        use: x509.ObjectIdentifier,
        hosts: x509.SubjectAlternativeName | None = None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _begun(_subject(name), self.certificate.subject, key.public_key(), days)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(_usage(signs=False), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        made = made.add_extension(self._key_identifier(), critical=False)
        if hosts is not None:
            made = made.add_extension(hosts, critical=False)
        signed = made.sign(self.key, hashes.SHA256())
        folder.mkdir(parents=True, exist_ok=True)
        write_new(folder / CA, self.pem, PUBLIC)
        write_new(folder / f"{stem}.crt", signed.public_bytes(serialization.Encoding.PEM), PUBLIC)
        write_new(folder / f"{stem}.key", _key_pem(key), PRIVATE)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


def make_authority(fleet: str) -> Authority:
    """A new one, for a fleet."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"fedpeat {fleet}"[:MAX_COMMON_NAME])
    made = _begun(name, name, key.public_key(), AUTHORITY_DAYS)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(_usage(signs=True), critical=True)
    return Authority(made.sign(key, hashes.SHA256()), key)


def load_authority(folder: pathlib.Path) -> Authority:
    """The one that was saved there. Raises ConfigError."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
    except OSError as error:
        msg = f"no authority: {os_error_line(error)}"
        raise ConfigError(msg) from error
    except (ValueError, TypeError) as error:
        msg = f"the authority in {folder} cannot be used: {error}"
        raise ConfigError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        msg = f"{folder / KEY} is not the key of {folder / CA}"
        raise ConfigError(msg)
    return Authority(certificate, key)


def check_host(host: str) -> str:
    """The name or address itself. Raises ConfigError for what a certificate cannot be made for."""
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        if not HOST.fullmatch(host) or len(host) > MAX_HOST:
            msg = f"{host!r} is neither a host's name nor its address; give it without a scheme and port"
            raise ConfigError(msg) from error
    return host


def write_new(path: pathlib.Path, data: bytes, mode: int) -> None:
    """A file that was not there, with these rights from the beginning. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = _now()
    made = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    made = made.not_valid_before(now - SLACK).not_valid_after(now + dt.timedelta(days=days))
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)
