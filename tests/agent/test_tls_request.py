"""A host's key stays on the host and stays the same; the request proves it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from agent.tls_request import main


def test_the_host_keeps_its_key_between_requests_and_replaces_a_broken_one(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    key_path = tmp_path / "host.key"
    assert main([str(key_path), "alpha"]) == 0
    first = x509.load_pem_x509_csr(capfdbinary.readouterr().out)
    assert main([str(key_path), "alpha"]) == 0
    second = x509.load_pem_x509_csr(capfdbinary.readouterr().out)
    assert first.public_key() == second.public_key()
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    key_path.write_bytes(key_path.read_bytes()[:40])
    assert main([str(key_path), "alpha"]) == 0
    third = x509.load_pem_x509_csr(capfdbinary.readouterr().out)
    assert third.public_key() != first.public_key()


def test_wrong_usage_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 3
    assert "KEY_FILE HOST" in capsys.readouterr().err
