"""A real sshd on a loopback address, run as the current user, with keys of its own and a home that it shows.

It always stops: by its PidFile at the end of the test, and with it every session it started.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from odctl.inventory import Inventory, parse_inventory

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
USER = getpass.getuser()
START_S = 10.0

needs_sshd = pytest.mark.skipif(
    not Path(SSHD).is_file() or shutil.which("ssh-keygen") is None, reason="no OpenSSH server on this machine"
)


class Sshd:
    """One server. `home` is the home directory that its sessions see."""

    def __init__(self, folder: Path, *, address: str = "127.0.0.1", options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.address = address
        self.port = free_port(address)
        self.home = folder / "home"
        self.identity = folder / "client_key"
        self._options = options
        folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)
        make_key(self.identity)
        make_key(self.host_key_file)
        (folder / "authorized_keys").write_text(self.identity.with_suffix(".pub").read_text())
        self.known_hosts = folder / "known_hosts"
        self.trust(self.host_key)

    @property
    def host_key_file(self) -> Path:
        return self.folder / "host_key"

    @property
    def host_key(self) -> str:
        """`<type> <base64>`."""
        return public_key(self.host_key_file)

    @property
    def pid(self) -> int:
        return int((self.folder / "sshd.pid").read_text())

    @property
    def place(self) -> str:
        return f"[{self.address}]:{self.port}"

    def trust(self, key: str, *, marker: str = "") -> None:
        """Make `key` the only line of known_hosts."""
        self.known_hosts.write_text(f"# ours\n{marker + ' ' if marker else ''}{self.place} {key}\n")

    def inventory(
        self, *, host: str = "", defaults: str = "", more: str = "", port: int | None = None
    ) -> Inventory:
        """An inventory with the host `box` on this server. Nothing of the user's own ~/.ssh takes part."""
        config = self.folder / "ssh_config"
        if not config.exists():
            config.write_text("")
        text = f"""
[cluster]
name = "sshtest"
[defaults]
user = "{USER}"
identity = "{self.identity}"
known_hosts = "{self.known_hosts}"
ssh_config = "{config}"
connect_timeout_s = 20
{defaults}
[hosts.box]
ssh = "{self.address}"
port = {port or self.port}
{host}
{more}
"""
        return parse_inventory(text, path=self.folder / "inventory.toml")

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        lines = [
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.host_key_file}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            f"SetEnv HOME={self.home}",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            "LogLevel VERBOSE",
        ]
        # sshd takes the first value of an option, so what a test says comes before what we say.
        config = self.folder / "sshd_config"
        config.write_text("\n".join([*self._options, *lines]) + "\n")
        subprocess.run([SSHD, "-f", config, "-E", self.folder / "sshd.log"], check=True, timeout=START_S)
        wait_until((self.folder / "sshd.pid").exists, "sshd writes its pid")

    def stop(self) -> None:
        """End the server and its sessions, stopped ones included."""
        if not (self.folder / "sshd.pid").exists():
            return
        for pid in [*self.session_pids(), self.pid]:
            for number in (signal.SIGCONT, signal.SIGTERM):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
        wait_until(lambda: not (self.folder / "sshd.pid").exists(), "sshd ends")

    def session_pids(self) -> list[int]:
        """The sshd processes of its connections, without the commands that they run."""
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True, timeout=10
        )
        found = {self.pid}
        for line in sorted(listed.stdout.splitlines(), key=lambda line: int(line.split()[0])):
            pid, parent, name = line.split(maxsplit=2)
            if int(parent) in found and name.startswith("sshd"):
                found.add(int(pid))
        return sorted(found - {self.pid})

    def host_key_fingerprint(self) -> str:
        """As `ssh-keygen` prints it."""
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-f", self.host_key_file], capture_output=True, text=True, check=True, timeout=10
        )
        return listed.stdout.split()[1]

    def certify_host_key(self, authority: Path) -> None:
        """Make host_key-cert.pub, signed by `authority` for this address."""
        arguments: list[str | Path] = ["-s", authority, "-I", "box", "-h", "-n", self.address, self.host_key_file]
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True, timeout=10, capture_output=True)


@contextmanager
def running_sshd(folder: Path, *, address: str = "127.0.0.1", options: tuple[str, ...] = ()) -> Iterator[Sshd]:
    server = Sshd(folder, address=address, options=options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", path], check=True, timeout=30
    )


def set_passphrase(path: Path, passphrase: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", passphrase, "-f", path], check=True, timeout=30, capture_output=True
    )


def add_to_agent(path: Path) -> None:
    subprocess.run(["ssh-add", "-q", path], check=True, timeout=10, capture_output=True)


def public_key(path: Path) -> str:
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(is_true: object, what: str, *, within_s: float = START_S) -> None:
    """Block until a condition holds; fails with its name."""
    assert callable(is_true)
    deadline = time.monotonic() + within_s
    pause = 0.005
    while not is_true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
