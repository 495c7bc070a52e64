"""Make this host's TLS key, once, and print a certificate request for it: `python -m agent.tls_request KEY HOST`.

The key never leaves the host; the request on stdout is all that the operator gets. What the certificate will
say is the operator's decision: the authority takes only the public key from the request.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in `path` (P-256, PKCS #8, PEM, 0600). A missing or unusable file is replaced by a fresh key."""
    if path.exists():
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except ValueError:  # cut short by a full disk: nothing else knows this key, so a new one costs nothing
            key = None
        if isinstance(key, ec.EllipticCurvePrivateKey):
            path.chmod(0o600)
            return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return key


def make_request(key: ec.EllipticCurvePrivateKey, host: str) -> bytes:
    """A certificate request (PEM) that proves possession of the key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m agent.tls_request KEY_FILE HOST\n")
        return 3
    sys.stdout.buffer.write(make_request(load_or_make_key(Path(arguments[0])), arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
