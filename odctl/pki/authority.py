"""The cluster's certificate authority, which lives with the operator, and the leaves it gives to hosts.

Keys: ECDSA P-256. The root lives ten years, a leaf seven days; both carry AKI, SKI and keyUsage because
Python 3.13 and later refuse a chain without them. Leaves start five minutes in the past, since hosts' clocks
differ a little.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.errors import FleetError
from agent.wire.identity import agent_uri, dns_name
from odctl.inventory import cluster_directory

ROOT_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=7)
BACKDATE = timedelta(minutes=5)
RENEW_AFTER = 1 / 3
"""Share of a leaf's life after which any bootstrap renews it."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class LeafIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a leaf speaks for. `cluster_address` is an IP address or a DNS name."""

    cluster: str
    host: str
    cluster_address: str

    @property
    def dns_name(self) -> str:
        return dns_name(self.host, self.cluster)

    @property
    def uri(self) -> str:
        return agent_uri(self.host, self.cluster)


class ClusterAuthority:
    """One cluster's root certificate with its key. Make one with `open_authority`."""

    def __init__(self, cluster: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.cluster = cluster
        self._key = key
        self._certificate = certificate

    @property
    def ca_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, request_pem: bytes, identity: LeafIdentity, *, now: datetime) -> bytes:
        """A leaf (PEM) for the request's public key. Nothing else of the request is believed.

        Raises FleetError E303 when the request is not one, or was not signed by the key it carries.
        """
        assert identity.cluster == self.cluster, f"{identity.cluster} is not {self.cluster}"
        try:
            request = x509.load_pem_x509_csr(request_pem)
        except ValueError as error:
            raise FleetError(
                "E303", "the host sent no certificate request", hint=str(error), host=identity.host
            ) from error
        public_key = request.public_key()
        if not request.is_signature_valid or not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise FleetError(
                "E303",
                "the host's certificate request does not prove its key",
                hint="remove etc/tls/host.key below the prefix there and bootstrap again",
                host=identity.host,
            )
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.dns_name[:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(_names_of(identity)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_key_identifier(self._certificate), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return leaf.public_bytes(serialization.Encoding.PEM)

    def why_renew(self, leaf_pem: bytes, identity: LeafIdentity, *, now: datetime) -> str:
        """Why this leaf must be replaced now; empty when it is good for longer."""
        if not leaf_pem:
            return "there is none"
        try:
            leaf = x509.load_pem_x509_certificate(leaf_pem)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return "it is not a certificate of ours"
        try:
            leaf.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError):
            return "another authority signed it"
        if set(names) != set(_names_of(identity)):
            return "the host's name or address changed"
        began, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if now >= ends:
            return "it has expired"
        if now < began or now >= began + (ends - began) * RENEW_AFTER:
            return "a third of its life is over"
        return ""


def open_authority(cluster: str, *, directory: Path | None = None, now: datetime | None = None) -> ClusterAuthority:
    """The authority of `cluster`, made on first use in `<directory>/<cluster>/ca.{key,pem}`.

    `directory` is by default where the operator keeps all clusters (`inventory.cluster_directory`).

    Raises FleetError E103 when the name cannot stand in a certificate, E303 when the stored files are damaged.
    """
    if not _NAME.fullmatch(cluster):
        raise FleetError(
            "E103", f"`{cluster}` cannot name a cluster", hint="letters, digits, `.`, `_`, `-`; at most 63"
        )
    home = directory / cluster if directory else cluster_directory(cluster)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(home / ".lock"):
        key_path, pem_path = home / "ca.key", home / "ca.pem"
        if not key_path.exists() and not pem_path.exists():
            key, certificate = _make_root(cluster, now or datetime.now(UTC))
            _write_private(pem_path, certificate.public_bytes(serialization.Encoding.PEM))
            _write_private(
                key_path,
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
            )
        return _load(cluster, key_path, pem_path)


def _load(cluster: str, key_path: Path, pem_path: Path) -> ClusterAuthority:
    try:
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(pem_path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise FleetError(
            "E303",
            f"the authority of cluster {cluster} is damaged: {error}",
            hint=f"restore {key_path} and {pem_path.name} from a backup, or remove both to begin a new authority "
            "(every host must then be bootstrapped again)",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise FleetError(
            "E303",
            f"{key_path} is not the key of {pem_path.name}",
            hint="restore both from the same backup",
        )
    key_path.chmod(0o600)
    return ClusterAuthority(cluster, key, certificate)


def _make_root(cluster: str, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"odctl {cluster}"[:64])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _names_of(identity: LeafIdentity) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName(identity.dns_name),
        x509.UniformResourceIdentifier(identity.uri),
    ]
    try:
        names.append(x509.IPAddress(ipaddress.ip_address(identity.cluster_address)))
    except ValueError:
        names.append(x509.DNSName(identity.cluster_address))
    return names


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _write_private(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Two operators' processes on one machine must not both make the root."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
