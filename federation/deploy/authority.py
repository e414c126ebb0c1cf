"""The certificate authority, the server's certificate, and the sites' key pairs.

All keys are on the curve P-384. The authority vouches for the server alone: a site knows the server
by its certificate, and the server knows a site by the public key that was registered for it.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.deploy.files import PRIVATE, write
from graphcl.errors import ConfigError

CA_CERTIFICATE, _CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
SITE_KEY, SITE_PUBLIC_KEY = "node.key", "node.key.pub"

_CA_DAYS = 3650
_LOOPBACK = ("localhost", "127.0.0.1")  # the server's own commands reach it there
_CLOCKS = datetime.timedelta(hours=1)  # by which a site's clock may be behind
_Key = ec.EllipticCurvePrivateKey


class Authority:
    """The certificate authority of one federation; made where there is none yet.

    Args:
        folder: Holds its key, which stays with the operator, and its certificate.
        name: The federation's name.
    """

    def __init__(self, folder: Path, name: str):
        self.certificate_file = folder / CA_CERTIFICATE
        key_file = folder / _CA_KEY
        if not key_file.exists():
            if self.certificate_file.exists():
                raise ConfigError(
                    f"{key_file}: missing, and a new authority would be unknown to all sites; put "
                    "it back, or provision anew in another folder"
                )
            write(key_file, _private_pem(_new_key()), PRIVATE)
        self._key = _load_key(key_file)
        if not self.certificate_file.exists():
            write(self.certificate_file, self._self_signed(name).public_bytes(Encoding.PEM))
        self._certificate = load_certificate(self.certificate_file)

    def certify_server(
        self, folder: Path, hosts: Sequence[str], days: int, *, new_key: bool
    ) -> None:
        """Give the server a certificate.

        Args:
            folder: The server's.
            hosts: Names and addresses that the certificate vouches for, beside the loopback's.
            days: Until it must be renewed.
            new_key: Whether for a new key also where it has one.
        """
        has_key = (folder / SERVER_KEY).exists() and not new_key
        key = _load_key(folder / SERVER_KEY) if has_key else _new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        names = [_general_name(host) for host in dict.fromkeys((*hosts, *_LOOPBACK))]
        issuer_key = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = (
            _builder(subject, self._certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key),
                critical=False,
            )
            .sign(self._key, SHA384())
        )
        if not has_key:
            write(folder / SERVER_KEY, _private_pem(key), PRIVATE)
        write(folder / SERVER_CERTIFICATE, certificate.public_bytes(Encoding.PEM))

    def _self_signed(self, name: str) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        return (
            _builder(subject, subject, self._key, _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self._key, SHA384())
        )


def new_site_key(folder: Path) -> str:
    """Write a new key pair of a site in OpenSSH's format; return the public half, one line."""
    key = _new_key()
    public = _public_line(key)
    write(
        folder / SITE_KEY,
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        PRIVATE,
    )
    write(folder / SITE_PUBLIC_KEY, public + "\n")
    return public


def public_site_key(folder: Path) -> str | None:
    """Return the public half of the key in a site's folder, None where there is none.

    Raises:
        ConfigError: If the key cannot be read, or others than its owner can.
    """
    file = folder / SITE_KEY
    if not file.exists():
        return None
    check_private(file)
    try:
        key = load_ssh_private_key(file.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"{file}: no private key in OpenSSH's format: {error}") from None
    if not isinstance(key, _Key):
        raise ConfigError(f"{file}: no key on an elliptic curve, as Flower's nodes must have")
    return _public_line(key)


def check_private(file: Path) -> None:
    """Refuse a key that others can read.

    Raises:
        ConfigError: Saying how to mend it.
    """
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"{file}: others than its owner may read this key; chmod 600 {file}")


def check_server_certificate(folder: Path) -> None:
    """Refuse a server's folder whose certificate no site would accept.

    Raises:
        ConfigError: If a file is missing or unreadable, the certificate is not of this authority or
            of this key, or its time is over; the message says how to renew it.
    """
    check_private(_existing(folder / SERVER_KEY))
    certificate = load_certificate(folder / SERVER_CERTIFICATE)
    authority = load_certificate(folder / CA_CERTIFICATE)
    where = f"{folder / SERVER_CERTIFICATE}"
    renew = "renew it by `graphcl deploy rotate server`"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise ConfigError(
            f"{where}: not of the authority in {CA_CERTIFICATE}, which the sites trust; put both "
            "files of one folder here"
        ) from None
    if certificate.public_key() != _load_key(folder / SERVER_KEY).public_key():
        raise ConfigError(f"{where}: belongs to another key than {SERVER_KEY}; {renew}")
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigError(
            f"{where}: valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, which is not now; {renew}"
        )


def load_certificate(file: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return x509.load_pem_x509_certificate(_existing(file).read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file}: no certificate in PEM format: {error}") from None


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ConfigError(f"{file}: missing; copy the whole folder that `graphcl deploy init` made")
    return file


def _new_key() -> _Key:
    return ec.generate_private_key(ec.SECP384R1())


def _load_key(file: Path) -> _Key:
    try:
        key = load_pem_private_key(_existing(file).read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"{file}: no private key in PEM format: {error}") from None
    if not isinstance(key, _Key):
        raise ConfigError(f"{file}: no key on an elliptic curve, as `graphcl deploy init` makes")
    return key


def _private_pem(key: _Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_line(key: _Key) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: _Key, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**none, **allowed})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
