"""The shell's command line: run with a command behind it, it reaches what odctl reaches."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.inventory import Inventory, parse_inventory
from odctl.ssh.shell import shell_command
from tests.odctl.ssh.sshd import Sshd, needs_sshd, running_sshd

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd") as running:
        yield running


def run(inventory: Inventory, *command: str) -> subprocess.CompletedProcess[str]:
    shell = shell_command(inventory, "box")
    return subprocess.run(
        [*shell.argv, *command],
        cwd=shell.directory or None,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.ssh
@needs_sshd
@needs_ssh
def test_the_command_line_reaches_the_host_with_its_key_and_known_hosts(server: Sshd) -> None:
    answer = run(server.inventory(), "echo", "in")
    assert (answer.returncode, answer.stdout) == (0, "in\n"), answer.stderr


@pytest.mark.ssh
@needs_sshd
@needs_ssh
def test_a_host_key_that_odctl_does_not_trust_is_refused_here_too(server: Sshd) -> None:
    server.known_hosts.write_text("")
    answer = run(server.inventory(), "true")
    assert answer.returncode == 255
    assert "Host key verification failed" in answer.stderr


@pytest.mark.ssh
@needs_sshd
@needs_ssh
def test_jumps_are_gone_through_with_the_same_trust(server: Sshd, tmp_path: Path) -> None:
    with running_sshd(tmp_path / "jump") as jump:
        way = f'jump = ["{jump.address}:{jump.port}"]'
        server.known_hosts.write_text(f"{server.place} {server.host_key}\n{jump.place} {jump.host_key}\n")
        keys = (jump.folder / "authorized_keys", server.identity.with_suffix(".pub"))
        keys[0].write_text(keys[1].read_text())
        answer = run(server.inventory(host=way), "echo", "behind")
        assert (answer.returncode, answer.stdout) == (0, "behind\n"), answer.stderr
        server.known_hosts.write_text(f"{server.place} {server.host_key}\n")
        assert run(server.inventory(host=way), "true").returncode == 255, "the jump's key is checked as well"


def test_a_local_host_has_a_shell_in_its_own_home(tmp_path: Path) -> None:
    text = f"""
[cluster]
name = "lab"
[hosts.box]
transport = "local"
home = "{tmp_path}"
"""
    shell = shell_command(parse_inventory(text, path=tmp_path / "inventory.toml"), "box")
    assert shell.directory == str(tmp_path)
    assert shell.environment["HOME"] == str(tmp_path)
    with pytest.raises(FleetError) as caught:
        shell_command(parse_inventory(text, path=tmp_path / "inventory.toml"), "bax")
    assert caught.value.code == "E108"
