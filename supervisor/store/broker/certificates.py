"""The broker's certificate and the authority of its own that signs it, as files in its directory; not who may connect.

The authority is made once, so that credentials files stay good; the certificate is made again when its names change or its
end is near. Keys are readable by their owner alone.
"""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandbox.contract.credentials import write_private
from sandbox.contract.errors import ConfigError
from sandbox.contract.model import Frozen

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 397
RENEW_DAYS: Final = 30
"""A certificate that ends sooner is made again."""
BACKDATED: Final = timedelta(days=1)
"""Clocks of other hosts may be behind."""


class Certificates(Frozen):
    """Files of a broker that speaks TLS."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def authority_pem(self) -> str:
        """Return what clients trust: the `ca` of every credentials file."""
        return self.authority.read_text()


def ensure_certificates(directory: Path, names: Iterable[str], *, now: datetime | None = None) -> Certificates:
    """Return the files, made where they are missing, lack a name or end within 30 days.

    Args:
        directory: The broker's.
        names: Host names and addresses by which clients connect.
        now: For tests.

    Raises:
        ConfigError: A file is there and cannot be read.
    """
    now = now or datetime.now(UTC)
    files = Certificates(authority=directory / "ca.pem", certificate=directory / "server.pem", key=directory / "server.key")
    authority, authority_key = _authority(files.authority, directory / "ca.key", now)
    if not _is_good(files, authority, set(names), now):
        key = _new_key(files.key)
        write_private(
            files.certificate, _signed(key, authority, authority_key, sorted(names), now).public_bytes(serialization.Encoding.PEM)
        )
    return files


def _authority(path: Path, key_path: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if path.exists() and key_path.exists():
        certificate, key = _read(path), _read_key(key_path)
        if certificate.not_valid_after_utc - now > timedelta(days=CERTIFICATE_DAYS):
            return certificate, key
    key = _new_key(key_path)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Andon broker authority")])
    certificate = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(path, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _signed(
    key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Andon broker")])
    # Servers of one cluster show it to each other from both ends.
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject, authority.subject, key, now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(files: Certificates, authority: x509.Certificate, names: set[str], now: datetime) -> bool:
    if not files.certificate.exists() or not files.key.exists():
        return False
    certificate = _read(files.certificate)
    if certificate.not_valid_after_utc - now <= timedelta(days=RENEW_DAYS):
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):  # another authority's, or an older one of ours: made again
        return False
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    is_its_key = certificate.public_key() == _read_key(files.key).public_key()
    return is_its_key and {_name(each) for each in names} <= set(held)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(path, pem)
    return key


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate; remove it to have a new one made") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a key; remove it to have a new one made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key of ours; remove it to have a new one made")
    return key
