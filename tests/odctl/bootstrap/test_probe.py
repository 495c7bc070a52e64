"""The probe against this very machine, and its answer through a chatty login shell."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.bootstrap.probe import ProbeFacts, parse_probe, probe_host
from odctl.bootstrap.run import script
from odctl.ssh.local import LocalTransport


async def probe(home: Path, *, prefix: str = "~/p", python: str = sys.executable) -> ProbeFacts:
    packages = ("torch", "msgspec", "not-a-package")
    return await probe_host(LocalTransport("here", home=home), prefix=prefix, python=python, packages=packages)


async def test_it_says_what_this_machine_is(tmp_path: Path) -> None:
    facts = await probe(tmp_path)
    assert facts.arch == platform.machine()
    assert facts.kernel == platform.release()
    assert facts.uid == os.getuid()
    assert facts.prefix == str(tmp_path / "p")
    assert facts.libc.startswith("glibc") or "musl" in facts.libc
    assert len(facts.boot_id) == 36
    assert facts.missing_tools == ""
    assert not facts.exists
    assert facts.is_writable
    assert not facts.is_noexec
    assert abs(facts.disk_free_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert abs(facts.clock_skew_s) < 1
    assert abs(facts.now_s - time.time()) < 60
    (python,) = facts.pythons
    assert python.path == sys.executable
    assert python.version == platform.python_version()
    assert set(python.packages) == {"torch", "msgspec"}
    assert facts.handshake is None


async def test_it_changes_nothing(tmp_path: Path) -> None:
    await probe(tmp_path)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the blocking kind is fine here


async def test_without_a_named_python_it_finds_those_on_the_path(tmp_path: Path) -> None:
    facts = await probe(tmp_path, python="")
    assert facts.pythons
    assert len({python.path for python in facts.pythons}) == len(facts.pythons)


async def test_a_python_that_is_not_there_is_no_python(tmp_path: Path) -> None:
    assert (await probe(tmp_path, python="/nowhere/python")).pythons == ()


async def test_a_home_that_is_not_the_accounts_has_no_user_manager(tmp_path: Path) -> None:
    assert not (await probe(tmp_path)).has_user_bus


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_it_sees_that_a_disk_is_noexec(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "odctl-test", tmp_path], check=True)  # noqa: ASYNC221
    try:
        facts = await probe(tmp_path)
        assert facts.is_noexec
        assert facts.filesystem == "tmpfs"
        assert facts.disk_free_bytes <= 1 << 20
    finally:
        subprocess.run(["umount", tmp_path], check=True)  # noqa: ASYNC221


def run_probe(home: Path, *, before: bytes = b"") -> bytes:
    result = subprocess.run(
        ["sh", "-s", "--", "~/p", sys.executable, "venv-x", "msgspec"],
        input=before + script("probe.sh"),
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    return result.stdout


def test_a_banner_around_it_does_no_harm(tmp_path: Path) -> None:
    chatty = b'echo "<<< welcome >>> \\"{}\\""; printf "no newline at the end"\n'
    facts = parse_probe(run_probe(tmp_path, before=chatty) + b"\nlogout\n", host="h")
    assert facts.prefix == str(tmp_path / "p")


def test_an_answer_cut_short_is_an_error_that_shows_stderr(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cut short") as caught:
        parse_probe(run_probe(tmp_path)[:200], host="h", stderr=b"sh: line 3: no such shell")
    assert caught.value.hint == "sh: line 3: no such shell"


def test_quotes_and_control_characters_in_a_path_stay_json(tmp_path: Path) -> None:
    home = tmp_path / 'a "quoted\\ home'
    home.mkdir()
    assert parse_probe(run_probe(home), host="h").prefix == str(home / "p")
