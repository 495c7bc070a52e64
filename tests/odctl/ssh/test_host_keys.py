"""Whether a host is the one it was, decided from known_hosts files alone."""

from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest

from odctl.inventory import HostKeys
from odctl.ssh.host_keys import HostKeyCheck, find_known_keys, fingerprint, remember_key
from tests.odctl.ssh.sshd import make_key, needs_sshd, public_key

KEY_A = "ssh-ed25519 " + base64.b64encode(b"a" * 51).decode()
KEY_B = "ssh-ed25519 " + base64.b64encode(b"b" * 51).decode()


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


def check_of(known_hosts: Path, *, policy: HostKeys = "strict", pin: str | None = None) -> HostKeyCheck:
    own_file = known_hosts.with_name("own") / "known_hosts"
    return HostKeyCheck("gpu01", files=[known_hosts], own_file=own_file, policy=policy, pin=pin)


def code_of(check: HostKeyCheck) -> str:
    assert check.refusal is not None
    return check.refusal.code


def test_a_known_key_is_accepted_and_an_unknown_one_is_a_question(known_hosts: Path) -> None:
    known_hosts.write_text(f"gpu01,10.0.0.1 {KEY_A} comment\n")
    check = check_of(known_hosts)
    assert check.accepts("gpu01", 22, KEY_A)
    assert check.accepts("10.0.0.1", 22, KEY_A)
    assert not check.accepts("gpu02", 22, KEY_A)
    assert check.refusal is not None
    assert check.refusal.code == "E203"
    assert fingerprint(KEY_A) in check.refusal.message
    assert "--accept-new" in check.refusal.hint
    assert "keyscan" not in check.refusal.hint


def test_a_changed_key_is_an_alarm_that_names_file_and_line(known_hosts: Path) -> None:
    known_hosts.write_text(f"# first\n\ngpu01 {KEY_A}\n")
    for policy in ("strict", "accept-new"):
        check = check_of(known_hosts, policy=policy)
        assert not check.accepts("gpu01", 22, KEY_B)
        assert check.refusal is not None
        assert check.refusal.code == "E204"
        assert f"{known_hosts}:3 has {fingerprint(KEY_A)}" in check.refusal.message
        assert check.refusal.host == "gpu01"


def test_a_port_has_keys_of_its_own(known_hosts: Path) -> None:
    known_hosts.write_text(f"[gpu01]:2222 {KEY_A}\ngpu02 {KEY_A}\n")
    check = check_of(known_hosts)
    assert check.accepts("gpu01", 2222, KEY_A)
    assert not check.accepts("gpu01", 22, KEY_A)
    assert code_of(check) == "E203"
    # The key of port 22 vouches for another port, but a different key there is only unknown.
    assert check.accepts("gpu02", 2222, KEY_A)
    assert not check.accepts("gpu02", 2222, KEY_B)
    assert code_of(check) == "E203"


def test_a_revoked_key_is_refused_even_where_it_is_known_or_pinned(known_hosts: Path) -> None:
    known_hosts.write_text(f"gpu01 {KEY_A}\n@revoked * {KEY_A}\n")
    for pin in (None, fingerprint(KEY_A)):
        check = check_of(known_hosts, pin=pin)
        assert not check.accepts("gpu01", 22, KEY_A)
        assert check.refusal is not None
        assert check.refusal.code == "E204"
        assert f"{known_hosts}:2" in check.refusal.message


def test_a_pin_overrules_what_is_known(known_hosts: Path) -> None:
    known_hosts.write_text(f"gpu01 {KEY_A}\n")
    check = check_of(known_hosts, pin=fingerprint(KEY_B))
    assert check.accepts("gpu01", 22, KEY_B)
    assert not check.accepts("gpu01", 22, KEY_A)
    assert code_of(check) == "E204"


def test_accept_new_remembers_in_our_own_file_only(known_hosts: Path) -> None:
    known_hosts.write_text("")
    check = check_of(known_hosts, policy="accept-new")
    assert check.accepts("gpu01", 2222, KEY_A)
    own = known_hosts.with_name("own") / "known_hosts"
    assert own.read_text() == f"[gpu01]:2222 {KEY_A}\n"
    assert known_hosts.read_text() == ""
    assert (stat.S_IMODE(own.stat().st_mode), stat.S_IMODE(own.parent.stat().st_mode)) == (0o600, 0o700)
    strict = check_of(known_hosts)
    assert strict.accepts("gpu01", 2222, KEY_A)
    assert not strict.accepts("gpu01", 2222, KEY_B)
    assert code_of(strict) == "E204"


@pytest.mark.parametrize(
    ("patterns", "name", "is_match"),
    [
        ("gpu*", "gpu01", True),
        ("gpu0?", "gpu01", True),
        ("GPU01", "gpu01", True),
        ("gpu*,!gpu01", "gpu01", False),
        ("!gpu01,gpu*", "gpu01", False),
        ("[gpu01]:2222", "gpu01", False),
        ("gpu", "gpu01", False),
    ],
)
def test_patterns_are_those_of_openssh(known_hosts: Path, patterns: str, name: str, is_match: bool) -> None:
    known_hosts.write_text(f"{patterns} {KEY_A}\n")
    assert bool(find_known_keys([known_hosts], name, 22).trusted) is is_match


def test_broken_lines_and_missing_files_say_nothing(known_hosts: Path) -> None:
    known_hosts.write_text(
        f"gpu01\ngpu01 ssh-ed25519\ngpu01 ssh-ed25519 %%%\n@strange gpu01 {KEY_A}\n|1|x {KEY_A}\n"
    )
    assert find_known_keys([known_hosts, known_hosts.with_name("none")], "gpu01", 22).trusted == ()


@needs_sshd
def test_what_ssh_keygen_hashes_and_prints_is_read(tmp_path: Path, known_hosts: Path) -> None:
    make_key(tmp_path / "key")
    key = public_key(tmp_path / "key")
    printed = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True, check=True, timeout=10
    )
    assert fingerprint(key) in printed.stdout
    remember_key(known_hosts, "gpu01", 2222, key)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known_hosts], check=True, timeout=10, capture_output=True)
    assert known_hosts.read_text().startswith("|1|")
    (found,) = find_known_keys([known_hosts], "gpu01", 2222).trusted
    assert (found.key, found.line) == (key, 1)
    assert find_known_keys([known_hosts], "gpu02", 2222).trusted == ()
