"""The authority's leaves carry a real mutual TLS handshake, and are renewed when they should be."""

from __future__ import annotations

import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import FleetError
from agent.tls_request import load_or_make_key, make_request
from odctl.pki import ClusterAuthority, LeafIdentity, open_authority
from odctl.pki.authority import LEAF_LIFE

ALPHA = LeafIdentity(cluster="lab", host="alpha", cluster_address="127.0.0.1")
BETA = LeafIdentity(cluster="lab", host="beta", cluster_address="beta.example")


def leaf_files(authority: ClusterAuthority, identity: LeafIdentity, directory: Path) -> tuple[Path, Path]:
    directory.mkdir(parents=True)
    key_path, pem_path = directory / "host.key", directory / "host.pem"
    request = make_request(load_or_make_key(key_path), identity.host)
    pem_path.write_bytes(authority.issue(request, identity, now=datetime.now(UTC)))
    return key_path, pem_path


def strict_context(authority: ClusterAuthority, files: tuple[Path, Path], *, is_server: bool) -> ssl.SSLContext:
    """As Python 3.13 verifies, whatever Python runs this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.ca_pem.decode())
    context.load_cert_chain(files[1], files[0])
    return context


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, server_hostname: str
) -> tuple[dict[str, object], dict[str, object]]:
    """Certificates as each end saw the other's. Raises ssl.SSLError when either end refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(to_server, to_client, server_side=True)
    connecting = client.wrap_bio(to_client, to_server, server_hostname=server_hostname)
    open_ends = [connecting, accepting]
    for _ in range(10):
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not open_ends:
            break
    assert not open_ends
    seen_by_client, seen_by_server = connecting.getpeercert(), accepting.getpeercert()
    assert seen_by_client is not None
    assert seen_by_server is not None
    return dict(seen_by_client), dict(seen_by_server)


def test_both_ends_verify_each_other_by_name_and_address(tmp_path: Path) -> None:
    authority = open_authority("lab", directory=tmp_path / "clusters")
    alpha = leaf_files(authority, ALPHA, tmp_path / "alpha")
    beta = leaf_files(authority, BETA, tmp_path / "beta")
    server = strict_context(authority, alpha, is_server=True)
    client = strict_context(authority, beta, is_server=False)
    for name in ("127.0.0.1", "alpha.lab.odctl"):
        seen_by_client, seen_by_server = shake_hands(server, client, name)
        assert ("URI", "spiffe://lab/agent/alpha") in seen_by_client["subjectAltName"]  # type: ignore[operator]
        assert ("URI", "spiffe://lab/agent/beta") in seen_by_server["subjectAltName"]  # type: ignore[operator]
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(server, client, "gamma.lab.odctl")


def test_a_leaf_of_another_authority_is_refused_by_both_ends(tmp_path: Path) -> None:
    ours = open_authority("lab", directory=tmp_path / "ours")
    theirs = open_authority("lab", directory=tmp_path / "theirs")
    alpha = leaf_files(ours, ALPHA, tmp_path / "alpha")
    stranger = leaf_files(theirs, BETA, tmp_path / "beta")
    with pytest.raises(ssl.SSLError):
        shake_hands(
            strict_context(ours, alpha, is_server=True),
            strict_context(ours, stranger, is_server=False),
            "alpha.lab.odctl",
        )
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            strict_context(theirs, stranger, is_server=True),
            strict_context(ours, alpha, is_server=False),
            "beta.lab.odctl",
        )


def test_a_leaf_carries_what_strict_verifiers_ask_for(tmp_path: Path) -> None:
    authority = open_authority("lab", directory=tmp_path)
    _, pem_path = leaf_files(authority, ALPHA, tmp_path / "alpha")
    leaf = x509.load_pem_x509_certificate(pem_path.read_bytes())
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == LEAF_LIFE + timedelta(minutes=5)


def test_a_leaf_is_renewed_past_a_third_of_its_life_or_when_its_host_changed(tmp_path: Path) -> None:
    authority = open_authority("lab", directory=tmp_path)
    start = datetime.now(UTC)
    request = make_request(ec.generate_private_key(ec.SECP256R1()), "alpha")
    leaf = authority.issue(request, ALPHA, now=start)
    assert authority.why_renew(leaf, ALPHA, now=start) == ""
    assert authority.why_renew(leaf, ALPHA, now=start + timedelta(days=2)) == ""
    assert "third" in authority.why_renew(leaf, ALPHA, now=start + timedelta(days=2, hours=9))
    assert "expired" in authority.why_renew(leaf, ALPHA, now=start + timedelta(days=8))
    moved = LeafIdentity(cluster="lab", host="alpha", cluster_address="127.0.0.2")
    assert "address" in authority.why_renew(leaf, moved, now=start)
    other = open_authority("lab", directory=tmp_path / "other")
    assert "another authority" in other.why_renew(leaf, ALPHA, now=start)
    assert authority.why_renew(b"", ALPHA, now=start)
    assert authority.why_renew(b"scrap", ALPHA, now=start)


def test_a_forged_request_is_refused(tmp_path: Path) -> None:
    authority = open_authority("lab", directory=tmp_path)
    with pytest.raises(FleetError, match="no certificate request"):
        authority.issue(b"-----BEGIN NOTHING-----", ALPHA, now=datetime.now(UTC))


def test_the_root_is_made_once_and_private(tmp_path: Path) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(open_authority("lab", directory=tmp_path).ca_pem))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1
    assert stat.S_IMODE((tmp_path / "lab" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "lab").stat().st_mode) == 0o700


def test_a_damaged_authority_is_named_and_never_replaced(tmp_path: Path) -> None:
    open_authority("lab", directory=tmp_path)
    key = tmp_path / "lab" / "ca.key"
    key.write_bytes(b"")
    with pytest.raises(FleetError, match="damaged") as caught:
        open_authority("lab", directory=tmp_path)
    assert "backup" in caught.value.hint
    assert key.read_bytes() == b""


def test_a_name_that_could_leave_the_directory_is_refused(tmp_path: Path) -> None:
    for name in ("../lab", "", "a/b", ".hidden"):
        with pytest.raises(FleetError, match="cannot name a cluster"):
            open_authority(name, directory=tmp_path)


def test_the_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ODCTL_HOME", str(tmp_path))
    open_authority("lab")
    assert (tmp_path / "clusters" / "lab" / "ca.key").exists()
